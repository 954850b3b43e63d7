"""Measure how fast Penstock is, on the machine at hand; each module is a command."""
