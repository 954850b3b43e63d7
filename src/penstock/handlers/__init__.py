"""Define tasks, what they are handed, and the built-in ones."""
