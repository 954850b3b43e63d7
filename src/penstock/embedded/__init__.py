"""Run the whole stack on one machine: a real Valkey, the API and a worker under one supervisor."""

from __future__ import annotations

from penstock.embedded.errors import ChildFailed, EmbeddedError, FolderInUse, FolderUnusable, PortInUse, ValkeyMissing
from penstock.embedded.instance import Instance, find_instance
from penstock.embedded.parent_watch import PARENT_FD_VARIABLE, exit_with_parent
from penstock.embedded.ports import ensure_port_free
from penstock.embedded.stack import REDIS_URL_VARIABLE, StackOptions, run_stack

__all__ = [
    "PARENT_FD_VARIABLE",
    "REDIS_URL_VARIABLE",
    "ChildFailed",
    "EmbeddedError",
    "FolderInUse",
    "FolderUnusable",
    "Instance",
    "PortInUse",
    "StackOptions",
    "ValkeyMissing",
    "ensure_port_free",
    "exit_with_parent",
    "find_instance",
    "run_stack",
]
