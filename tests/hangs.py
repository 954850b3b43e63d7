"""End a run in which something hangs: a plugin for pytest, which ``conftest.py`` registers.

``timeout`` in ``pyproject.toml`` interrupts a test once, in whatever it does, the end of its fixtures among it. That
leaves two hangs: a second try of the same test (``--reruns``), for which the time does not start again, and threads for
which the end of the process waits.
"""

from __future__ import annotations

import faulthandler
import sys
from typing import Any

import pytest

#: How long the process may take to end after its last test.
EXIT_S = 60.0
_SETTINGS = pytest.StashKey[Any]()


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Keep what the timer is set to; None lets the plugin set it."""
    item.stash[_SETTINGS] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the time anew for each try."""
    if (settings := item.stash.get(_SETTINGS, None)) is not None:
        item.ihook.pytest_timeout_cancel_timer(item=item)
        item.ihook.pytest_timeout_set_timer(item=item, settings=settings)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Show where every thread stands and end with an error, should the process not end by itself."""
    # Such an end writes out no buffer, and what was reported would be lost in a pipe.
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        reporter.flush()
    # Output may still be captured here; it is not any more by then.
    faulthandler.dump_traceback_later(EXIT_S, exit=True, file=sys.__stderr__ or sys.stderr)
