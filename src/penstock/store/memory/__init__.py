"""Hold jobs in memory: the reference model of the store, for tests and for reading how each verb behaves."""

from penstock.store.memory.store import MemoryStore

__all__ = ["MemoryStore"]
