"""Name what the answer to a submit can mean."""

from __future__ import annotations

import enum


class Durability(enum.Enum):
    """Say where an accepted job is before its submit is answered."""

    #: In the server's memory; its own settings say how much a power cut may cost.
    MEMORY = "memory"
    #: In the append-only file, synced to the disk.
    FSYNC = "fsync"
    #: In the memory of the replicas too.
    REPLICA = "replica"
