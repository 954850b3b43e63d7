"""Hold the words and rules of Penstock: no I/O, no clock, no randomness."""
