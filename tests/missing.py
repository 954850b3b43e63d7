"""Say what a check needs and this machine lacks."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(what: str) -> NoReturn:
    """Skip the test with one line that names what is missing; with ``PENSTOCK_TEST_REQUIRE=all`` fail it."""
    if os.environ.get("PENSTOCK_TEST_REQUIRE") == "all":
        pytest.fail(what)
    pytest.skip(what)
