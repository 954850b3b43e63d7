"""Find out before starting anything whether the API's address is free."""

from __future__ import annotations

import contextlib
import errno
import socket

from penstock.embedded.errors import PortInUse

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_AIRPLAY_PORTS = {5000, 7000}


def free_port(preferred: int | None = None) -> int:
    """Return a free TCP port of 127.0.0.1: the preferred one if it is free, else one that the system picks."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, "no free port on 127.0.0.1")


def ensure_port_free(host: str, port: int) -> None:
    """Raise PortInUse, with the way out in its message, unless the API can listen there.

    On a loopback host a listener at either of 127.0.0.1 and ::1 counts: ``localhost`` would reach it instead of us.
    """
    if port == 0:
        return
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise PortInUse(host, port, f"cannot listen on {host}: {error.strerror or error}") from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            # As the server does, so that connections in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise _explain(host, port, error) from error
    if host in _LOOPBACK and (_answers("127.0.0.1", port) or _answers("::1", port)):
        raise _in_use(host, port)


def _answers(address: str, port: int) -> bool:
    # On macOS a bind to 127.0.0.1 succeeds beside a listener on all addresses, as AirPlay's is.
    try:
        with socket.create_connection((address, port), timeout=0.2):
            return True
    except OSError:
        return False


def _explain(host: str, port: int, error: OSError) -> PortInUse:
    if error.errno == errno.EADDRINUSE:
        return _in_use(host, port)
    return PortInUse(host, port, f"cannot listen on {host} port {port}: {error.strerror or error}")


def _in_use(host: str, port: int) -> PortInUse:
    other = port + 1 if port < 65_535 else port - 1
    hint = " (on macOS it is often AirPlay)" if port in _AIRPLAY_PORTS else ""
    return PortInUse(
        host,
        port,
        f"port {port} on {host} is in use{hint}; choose another: PENSTOCK_PORT={other} make run, "
        f"or penstock up --port {other}",
    )
