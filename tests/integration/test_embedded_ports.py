"""An address that is taken is found out before anything starts."""

from __future__ import annotations

import socket

import pytest

from penstock.embedded import PortInUse, ensure_port_free
from penstock.embedded.ports import free_port


def test_a_free_port_passes() -> None:
    ensure_port_free("127.0.0.1", free_port())
    ensure_port_free("127.0.0.1", 0)


@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_listener_makes_it_an_error_that_names_another_port(listener: str, host: str) -> None:
    with socket.create_server((listener, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUse, match=f"PENSTOCK_PORT={port + 1} make run") as caught:
            ensure_port_free(host, port)
    assert "\n" not in str(caught.value)
    assert (caught.value.host, caught.value.port) == (host, port)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_a_listener_that_localhost_would_reach_instead_counts() -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server, pytest.raises(PortInUse, match="is in use"):
        ensure_port_free("127.0.0.1", server.getsockname()[1])


def test_the_default_port_names_airplay() -> None:
    try:
        server = socket.create_server(("127.0.0.1", 5000))
    except OSError:
        server = None
    try:
        with pytest.raises(PortInUse, match=r"on macOS it is often AirPlay.*PENSTOCK_PORT=5001 make run"):
            ensure_port_free("127.0.0.1", 5000)
    finally:
        if server is not None:
            server.close()


def test_an_address_of_another_machine_is_explained() -> None:
    with pytest.raises(PortInUse, match=r"cannot listen on 192\.0\.2\.1"):
        ensure_port_free("192.0.2.1", free_port())


def test_a_preferred_port_is_kept_only_while_it_is_free() -> None:
    port = free_port()
    assert free_port(port) == port
    with socket.create_server(("127.0.0.1", port)):
        assert free_port(port) != port
