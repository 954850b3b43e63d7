"""Run other job systems beside Penstock, each in an environment of its own."""
