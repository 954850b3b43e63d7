"""Check what holds for all commands: codes of exit, wrong usage, help, and that the reference is that of the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import __version__
from penstock.cli import main
from penstock.cli.app import COMMANDS, load_command
from penstock.cli.exits import Exit
from penstock.cli.reference import cli_page, settings_page
from penstock.config import SETTINGS
from tests.unit.cli_support import JOB_ID, Command, FakeServer, command, server

__all__ = ["command", "server"]
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "echo", "words"], "add --text"),
        (["submit", "echo", "@none.json"], "cannot read none.json"),
        (["schedules", "put", "x", "echo", "words"], "add --text"),
        (["schedules", "put", "x", "echo", "@none.json"], "cannot read none.json"),
        (["submit"], "name the TASK"),
        (["submit", "echo", "--count", "0"], "--count"),
        (["submit", "echo", "--wait", "soon"], "--wait: expected seconds"),
        (["submit", "--ndjson", "none"], "cannot read none"),
        (["submit", "echo", "1", "--ndjson", "x"], "leave INPUT out"),
        (["submit", "echo", "--bogus"], "--bogus"),
        (["status"], "ID"),
        (["nonsense"], "nonsense"),
        (["dead-letter", "redrive"], "--all"),
        (["api", "--port", "x"], "--port: must be a whole number"),
        (["worker", "--lease", "x"], "--lease: expected seconds"),
        (["doctor"], "--redis-url"),
        (["api", "--host", "0.0.0.0", "--redis-url", "redis://127.0.0.1:1"], "PENSTOCK_API_KEYS"),
        (["up", "--host", "0.0.0.0"], "--insecure"),
        (["up", "--durability", "replica"], "has no replica"),
    ],
)
def test_wrong_usage_is_one_line_that_names_it(
    server: FakeServer, command: Command, arguments: list[str], words: str
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (Exit.USAGE, "")
    assert words in err
    assert err.startswith("penstock: ")
    assert err.count("\n") == 1
    assert server.seen == []


def test_wrong_usage_as_json_names_the_field(server: FakeServer, command: Command) -> None:
    code, out, _ = command("submit", "echo", "words", "--json")
    assert (code, json.loads(out)["error"]["field"]) == (Exit.USAGE, "input")
    code, out, _ = command("doctor", "--json")
    assert json.loads(out)["error"]["field"] == "PENSTOCK_REDIS_URL"


@pytest.mark.parametrize(
    ("status", "code", "expected", "words"),
    [
        (404, "job_not_found", Exit.NOT_FOUND, "priority: why"),
        (401, "unauthorized", Exit.DENIED, "PENSTOCK_API_KEY"),
        (403, "foreign_origin", Exit.DENIED, "priority: why"),
        (409, "state_conflict", Exit.CONFLICT, "priority: why"),
        (422, "invalid_request", Exit.USAGE, "priority: why"),
        (503, "store_unavailable", Exit.UNREACHABLE, "priority: why"),
        (500, "internal_error", Exit.FAILED, "priority: why"),
    ],
)
def test_each_refusal_has_its_code(
    server: FakeServer, command: Command, status: int, code: str, expected: Exit, words: str
) -> None:
    errors = [{"field": "priority", "code": "not_allowed", "detail": "why"}]
    problem = {"status": status, "code": code, "detail": "d", "errors": errors}
    server.answer("GET", f"/jobs/{JOB_ID}", problem, status)
    exit_code, out, err = command("status", JOB_ID, "--json")
    assert exit_code == expected
    document = json.loads(out)["error"]
    assert (document["code"], document["errors"]) == (code, errors)
    assert words in err


def test_nothing_listens(server: FakeServer, command: Command) -> None:
    code, out, err = command("queues", "--url", "http://127.0.0.1:1")
    assert (code, out) == (Exit.UNREACHABLE, "")
    assert "penstock up" in err


def test_versions(command: Command) -> None:
    assert command("--version") == (0, f"penstock {__version__}\n", "")
    assert __version__ in command("version")[1]
    assert json.loads(command("version", "--json")[1])["version"] == __version__


def test_without_a_command_the_help_is_shown(command: Command) -> None:
    code, out, err = command()
    assert (code, out) == (Exit.USAGE, "")
    assert all(name in err for name in COMMANDS)
    code, out, _ = command("submit", "--help")
    assert code == 0
    assert "PENSTOCK_URL" in out


def test_an_unexpected_error_is_one_line(server: FakeServer, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in\ntwo lines")

    monkeypatch.setattr("penstock.cli.queues.open_client", broken)
    code, out, err = command("queues")
    assert (code, out) == (Exit.FAILED, "")
    assert err.startswith("penstock: unexpected ZeroDivisionError: in two lines at ")
    assert err.count("\n") == 1


def test_ctrl_c_ends_with_its_code(server: FakeServer, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.cli.queues.open_client", interrupted)
    assert command("queues") == (Exit.INTERRUPTED, "", "")


def test_main_exits() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["version"])
    assert ended.value.code == 0


def test_every_command_takes_json() -> None:
    for name in COMMANDS:
        command = load_command(name)
        for single in getattr(command, "commands", {name: command}).values():
            flags = {flag for parameter in single.params for flag in parameter.opts}
            assert ("--json" in flags) == (name not in {"api", "worker"}), name


def test_every_setting_is_a_flag_of_up_or_of_the_client() -> None:
    flags = {flag for name in ("up", "submit") for parameter in load_command(name).params for flag in parameter.opts}
    assert {setting.flag for setting in SETTINGS} <= flags


def test_the_pages_are_those_of_the_code() -> None:
    folder = REPOSITORY / "docs" / "reference"
    hint = "make them anew: python -m penstock.cli.reference docs/reference"
    assert (folder / "settings.md").read_text("utf-8") == settings_page(), hint
    assert (folder / "cli.md").read_text("utf-8") == cli_page(), hint


def test_light_commands_load_no_server() -> None:
    code = (
        "import sys; from penstock.cli.app import run; run(['version']); run(['queues', '--url', 'http://127.0.0.1:1']);"
        "print(sorted({'litestar', 'redis', 'uvicorn', 'structlog'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_output_that_nobody_reads_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m penstock submit --help | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout == "0\n"
