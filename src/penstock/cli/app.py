"""Find the command, run it, and turn errors into one line and an exit code."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort
from typer.exceptions import Exit as TyperExit
from typer.main import get_command

from penstock import __version__
from penstock.cli.exits import Exit, document_of, exit_code_of, line_of
from penstock.core.errors import PenstockError

#: Each command, the module that holds it, and its line in ``penstock --help``.
COMMANDS = {
    "up": ("up", "Run everything on this machine: Valkey, the API and a worker."),
    "api": ("api", "Run the HTTP API."),
    "worker": ("worker", "Run jobs: the built-in tasks and those of your modules."),
    "submit": ("submit", "Submit a job, or many."),
    "status": ("status", "Show a job."),
    "watch": ("watch", "Follow a job, or the queues."),
    "log": ("log", "Show what a job has logged."),
    "jobs": ("jobs", "List jobs."),
    "cancel": ("cancel", "Cancel jobs."),
    "retry": ("retry", "Queue failed jobs again, or start waiting ones now."),
    "queues": ("queues", "Show what the queues hold."),
    "queue": ("queue", "Pause, resume or purge a queue."),
    "schedules": ("schedules", "List, show, write, pause, resume, run or delete schedules."),
    "dead-letter": ("dead_letter", "List, redrive or delete failed jobs."),
    "demo": ("demo", "Show on a running server what happens to jobs."),
    "doctor": ("doctor", "Check the Redis server and that each job is in exactly one place."),
    "health": ("health", "Say whether the API or this machine's worker is well."),
    "version": ("version", "Show the version."),
}


class Commands(TyperGroup):
    """Load a command's module when it is called, so that no command waits for what others need."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the framework's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the framework's signature
        return load_command(cmd_name) if cmd_name in COMMANDS else None


@functools.cache
def load_command(name: str) -> Any:
    """Import one command's module and return its command."""
    module, text = COMMANDS[name]
    command = get_command(importlib.import_module(f"penstock.cli.{module}").app)
    command.name = name
    command.short_help = text
    return command


app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"penstock {__version__}")
        raise TyperExit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Submit jobs over REST, run them on workers, never lose one."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    as_json = "--json" in arguments
    try:
        code = get_command(app).main(list(arguments), prog_name="penstock", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.OK
    except PenstockError as error:
        return _report(error, as_json=as_json)
    except (KeyboardInterrupt, Abort):
        return Exit.INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # The framework turns a broken pipe into a SystemExit.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Whoever read our output has gone, as in `penstock jobs | head`; the interpreter must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.OK
    except Exception as error:  # noqa: BLE001 - the last resort before a traceback
        return _report_unexpected(error)


def _report(error: PenstockError, *, as_json: bool) -> int:
    if as_json:
        import msgspec

        print(msgspec.json.encode(document_of(error)).decode(), flush=True)
    print(f"penstock: {line_of(error)}", file=sys.stderr)
    return exit_code_of(error)


def _report_unexpected(error: Any) -> int:
    # Errors in how the command was called are the framework's own; they know their code and their words.
    format_message = getattr(error, "format_message", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return Exit.USAGE
    if format_message is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "penstock"
        print(f"penstock: {' '.join(format_message().split())} (see '{command} --help')", file=sys.stderr)
        return int(getattr(error, "exit_code", Exit.USAGE))
    detail = " ".join(str(error).split())
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    print(f"penstock: unexpected {type(error).__name__}: {detail}{where}", file=sys.stderr)
    return Exit.FAILED
