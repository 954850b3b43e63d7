"""Say what happens: logs and metrics."""
