"""Give each test a folder in which to run the command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """Hold a folder of this test's own."""
    made = Folder(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """Hold a folder in which ``penstock up`` runs for all tests of a module."""
    made = Folder(tmp_path_factory.mktemp("running"))
    try:
        made.up()
        yield made
    finally:
        made.close()
