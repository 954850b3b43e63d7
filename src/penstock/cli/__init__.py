"""Be the command ``penstock``: one command a module, each loaded when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; see ``penstock.cli.exits`` for the codes."""
    from penstock.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
