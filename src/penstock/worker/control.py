"""Hold what a supervisor and its processes say to each other."""

from __future__ import annotations

import os
import pickle
import struct

import msgspec

from penstock.store import StoreOptions
from penstock.worker.options import WorkerOptions

#: What the process runs first, under ``-P``: a user's ``queue.py`` in the current folder must not replace Python's.
BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from penstock.worker.process import main
sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
"""
#: Exit codes, as in ``sysexits.h``.
EXIT_OK = 0
EXIT_CONFIG = 78
#: Handlers that cannot be stopped hold too many slots: another process is to take its place.
EXIT_WORN = 75
#: What the supervisor writes after the orders: begin to drain, hand back at once.
DRAIN = b"d"
HASTEN = b"h"
_LENGTH = struct.Struct("!I")


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """Say what to run; they travel through a pipe, because they hold secrets and arguments are seen by all users."""

    options: WorkerOptions
    store_options: StoreOptions
    alone: bool = False


def encode_orders(orders: Orders) -> bytes:
    """Return what the supervisor writes into the pipe first."""
    text = pickle.dumps(orders)
    return _LENGTH.pack(len(text)) + text


def read_orders(descriptor: int) -> Orders:
    """Read what the supervisor wrote first; end the process when it is gone before that."""
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size))
    orders: Orders = pickle.loads(_read(descriptor, length))  # noqa: S301 - written by our own parent process
    return orders


def _read(descriptor: int, length: int) -> bytes:
    found = b""
    while len(found) < length:
        part = os.read(descriptor, length - len(found))
        if not part:
            os._exit(1)
        found += part
    return found
