"""Show the version."""

from __future__ import annotations

import platform

from penstock import __version__
from penstock.cli.flags import JsonFlag, new_app
from penstock.cli.output import print_json

app = new_app()


@app.command()
def version(*, as_json: JsonFlag = False) -> None:
    """Show the version of Penstock and of Python."""
    if as_json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        print(f"penstock {__version__} (Python {platform.python_version()})")
