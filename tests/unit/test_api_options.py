"""Refuse to serve others without keys, and keep keys out of sight."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.api.guard import Guard, host_name, is_open
from penstock.api.options import ApiOptions, is_loopback
from penstock.api.problems import ApiError
from penstock.core.errors import ConfigError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "localhost.example.org"])
def test_no_keys_on_an_address_that_others_reach(host: str) -> None:
    with pytest.raises(ConfigError, match="PENSTOCK_API_KEYS") as raised:
        ApiOptions(host=host)
    assert raised.value.key == "PENSTOCK_API_KEYS"
    assert ApiOptions(host=host, api_keys=("k",)).host == host
    assert ApiOptions(host=host, insecure=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST.", "a.localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    assert ApiOptions(host=host).checks_loopback


@pytest.mark.parametrize("key", ["", "a b", "tab\t", "é", "line\n"])
def test_keys_that_no_header_carries(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ApiOptions(api_keys=("good", key))
    assert raised.value.key == "PENSTOCK_API_KEYS"
    assert "good" not in str(raised.value)


def test_port_out_of_range() -> None:
    with pytest.raises(ConfigError, match="PENSTOCK_PORT"):
        ApiOptions(port=65_536)


def test_keys_are_not_shown() -> None:
    options = ApiOptions(api_keys=("very-secret",))
    assert "very-secret" not in repr(options)
    assert "<1 keys>" in repr(options)
    assert "very-secret" not in repr(vars(Guard(options)))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("LocalHost:80", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("my.localhost", True),
        ("dev.example", True),
        ("dev.example:1", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_hosts_without_keys(host: str, allowed: bool) -> None:
    guard = Guard(ApiOptions(allowed_hosts=("dev.example",)))
    assert passes(guard, host=host) is allowed


@pytest.mark.parametrize(
    ("options", "host", "allowed"),
    [
        ({"host": "0.0.0.0", "insecure": True}, "anything.example", True),
        ({"host": "0.0.0.0", "insecure": True, "allowed_hosts": ("api",)}, "anything.example", False),
        ({"host": "0.0.0.0", "insecure": True, "allowed_hosts": ("api",)}, "api:5000", True),
        ({"insecure": True}, "anything.example", False),
    ],
)
def test_hosts_when_insecure(options: dict[str, Any], host: str, allowed: bool) -> None:
    assert passes(Guard(ApiOptions(**options)), host=host) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:5000", True),
        ("https://localhost:5000", True),
        ("http://localhost:3000", False),
        ("http://localhost", False),
        ("https://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_origins_without_keys(origin: str, allowed: bool) -> None:
    assert passes(Guard(ApiOptions()), host="localhost:5000", origin=origin) is allowed


def test_a_host_that_was_let_in_opens_for_nothing_else() -> None:
    guard = Guard(ApiOptions())
    hosts = ["127.0.0.1:5000", "evil.example", "evil.example", "", "LOCALHOST", "127.0.0.1:5000"]
    assert [passes(guard, host=host) for host in hosts] == [True, False, False, False, True, True]
    assert not passes(guard, host="127.0.0.1:5000", origin="https://evil.example")


def test_keys_take_the_place_of_host_and_origin() -> None:
    guard = Guard(ApiOptions(api_keys=("k",)))
    assert passes(guard, host="any.example", origin="https://evil.example", authorization="Bearer k")
    assert not passes(guard, host="localhost", authorization="Bearer l")


def test_open_routes() -> None:
    opened = ["/", "/health", "/health/live", "/docs", "/docs/start.js", "/openapi.json"]
    assert all(is_open(path) for path in opened)
    assert not any(is_open(path) for path in ["//", "/healthy", "/docsx", "/jobs", "/metrics", "/openapi.jsonx"])


def test_host_name() -> None:
    assert [host_name(text) for text in ("A:1", "[::1]:2", " b ", "")] == ["a", "::1", "b", ""]


def passes(guard: Guard, **headers: str) -> bool:
    try:
        guard.check("/jobs", {name.encode(): value.encode() for name, value in headers.items()})
    except ApiError:
        return False
    return True
