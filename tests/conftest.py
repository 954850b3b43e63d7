"""Start what tests need once a session: servers of the kind under test, on ports and in a folder of their own."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fleets, hangs

#: Fixtures of servers that a test kills, freezes or fills: each is one, whatever the suite runs on.
_OWN_SERVERS = frozenset({"server", "full"})


def _in_memory(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    return call is not None and "memory" in call.params.values()


def pytest_configure(config: pytest.Config) -> None:
    """See that a hang ends the run."""
    config.pluginmanager.register(hangs)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what cannot be tried on the kind of server that the suite runs on, with the reason."""
    kind = fleets.kind_under_test()
    # What cannot happen in memory is no test there, so it is left out and not skipped.
    items[:] = [item for item in items if not (_in_memory(item) and item.get_closest_marker("redis_only"))]
    for item in items:
        for marker in item.iter_markers("not_on"):
            if kind in marker.args:
                item.add_marker(pytest.mark.skip(reason=f"not on {kind}: {marker.kwargs['reason']}"))
        if not fleets.is_one_server() and _OWN_SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason=f"not on {kind}: kills, freezes or fills one server of its own"))


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """Return the address of servers shared by the session; use a namespace of your own and never flush them.

    ``PENSTOCK_TEST_SERVER`` says of which kind they are; one Valkey unless it is set.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-valkey-") as folder:
        more = ("--unixsocket", str(Path(folder) / "valkey.sock")) if fleets.is_one_server() else ()
        fleet = fleets.start(fleets.kind_under_test(), Path(folder) / "fleet", *more)
        with fleets.running(fleet):
            yield fleet.url


@pytest.fixture
def namespace() -> str:
    """Return a namespace that no other test uses."""
    return f"test-{uuid.uuid4().hex[:16]}"
