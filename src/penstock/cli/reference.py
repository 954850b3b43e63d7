"""Write the reference pages that are made from the code: ``python -m penstock.cli.reference docs/reference``.

A test compares the pages in the repository with what this makes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from penstock.cli.app import COMMANDS, load_command
from penstock.cli.exits import EXIT_HELP
from penstock.config import SETTINGS, Setting

_SETTINGS_HEAD = """\
# Settings

Each setting is an environment variable and a flag of the commands that use it; the flag wins. Secrets may also be read
from a file that the variable with `_FILE` at its end names (Docker and Kubernetes secrets); giving both is an error. An
empty variable counts as not set. A variable that starts with `PENSTOCK_` and is no setting stops the start, as does a
value that cannot be used; the error names it. A flag is visible to other users of the machine: keep secrets in
variables or files.

Durations are seconds or text such as `90s`, `15m`, `2h`, `1d`, `PT15M`; sizes are bytes or text such as `512KiB` or
`1MiB`.
"""
_REDIS = """\
Which Redis or Valkey is used: `--redis-url`, else `PENSTOCK_REDIS_URL`, else `REDIS_URL`, else `REDIS_HOST` and
`REDIS_PORT` (6379), else the one that `penstock up` runs in the data folder. `penstock up` itself starts its own when
none is named.

Which server the client commands ask: `--url`, else `PENSTOCK_URL`, else the API of the instance that runs in the data
folder, else `http://127.0.0.1:` and `PENSTOCK_PORT`. `penstock.Client` does not look into the data folder.
"""
_SECTIONS = {
    "client": "Client commands and `penstock.Client`",
    "api": "API (`penstock api`, `penstock up`)",
    "store": "Redis or Valkey (`penstock api`, `worker`, `up`, `doctor`, `health`)",
    "durability": "Durability (`penstock api`, `up`, `doctor`)",
    "worker": "Worker (`penstock worker`, `penstock up`)",
    "ai": "AI jobs (`penstock worker`, `penstock up`)",
    "logs": "Log (`penstock api`, `worker`, `up`)",
    "limits": "Limits (`penstock api`, `worker`, `up`)",
}
_CLI_HEAD = """\
# Command line

`penstock COMMAND --help` shows what stands here. `python -m penstock` is the same command.

Every command takes `--json`, except `api` and `worker`, which run until they are stopped. Then stdout holds one JSON
document and nothing else, or one a line where a command shows several things (`jobs`, `dead-letter list`, `watch`,
`demo`, `submit --count` and `--ndjson`, `cancel` and `retry`). An error is then `{"error": {"code", "detail", …}}` on
stdout too. Errors for people are one line on stderr. Progress bars appear on stderr, and only on a terminal.
"""


def settings_page() -> str:
    """Return ``docs/reference/settings.md``."""
    parts = [_SETTINGS_HEAD, _REDIS]
    for part, title in _SECTIONS.items():
        rows = [_row(setting) for setting in SETTINGS if part in setting.parts]
        parts.append(f"## {title}\n\n| Variable | Flag | Default | Meaning |\n|---|---|---|---|\n" + "".join(rows))
    return "\n".join(parts)


def _row(setting: Setting) -> str:
    variable = f"`{setting.env}`" + (f" or `{setting.env_file}`" if setting.secret else "")
    default = f"`{setting.shown}`" if setting.shown else ""
    return f"| {variable} | `{setting.flag}` | {default} | {setting.help} |\n"


def cli_page() -> str:
    """Return ``docs/reference/cli.md``."""
    codes = "".join(f"| {code.value} | {text} |\n" for code, text in EXIT_HELP.items())
    parts = [_CLI_HEAD, f"## Exit codes\n\n| Code | Meaning |\n|---|---|\n{codes}"]
    for name in COMMANDS:
        command = load_command(name)
        parts.append(f"## penstock {name}\n\n```text\n{_help(command, f'penstock {name}')}\n```\n")
        for child_name, child in sorted(getattr(command, "commands", {}).items()):
            parts.append(
                f"### penstock {name} {child_name}\n\n```text\n{_help(child, f'penstock {name} {child_name}')}\n```\n"
            )
    return "\n".join(parts)


def _help(command: Any, path: str) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    context.terminal_width = context.max_content_width = 110
    text: str = command.get_help(context)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def main(folder: str) -> None:
    """Write both pages into a folder."""
    Path(folder, "settings.md").write_text(settings_page(), encoding="utf-8")
    Path(folder, "cli.md").write_text(cli_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
