"""Keep jobs in Redis or Valkey by scripts that each make one transition whole."""
