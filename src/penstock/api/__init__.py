"""Serve jobs over HTTP: parse, call one verb of the store, render."""
