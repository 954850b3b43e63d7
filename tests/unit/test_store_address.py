"""Addresses of servers, clusters and sentinels are taken apart right, and wrong ones are refused in words."""

from __future__ import annotations

import pytest

from penstock.core.errors import ConfigError
from penstock.store import StoreOptions
from penstock.store.address import Kind, parse_address
from penstock.store.keys import SLOTS, PartitionKeys, slot_of


def test_one_server() -> None:
    address = parse_address("redis://user:p%40ss@redis.test:1234/2?ssl_cert_reqs=none")
    assert (address.kind, address.hosts, address.is_tls) == (Kind.ONE, (("redis.test", 1234),), False)
    assert address.server_url("10.0.0.1", 7) == "redis://user:p%40ss@10.0.0.1:7/2?ssl_cert_reqs=none"
    assert parse_address("rediss://[::1]:1").server_url("::1", 1) == "rediss://[::1]:1/"
    assert parse_address("redis://").hosts == (("localhost", 6379),)


def test_a_socket() -> None:
    address = parse_address("unix://:secret@/run/valkey.sock?db=1")
    assert (address.kind, address.path, address.hosts) == (Kind.ONE, "/run/valkey.sock", ())
    assert address.socket_url == "unix://:secret@/run/valkey.sock?db=1"


def test_a_cluster() -> None:
    address = parse_address("rediss+cluster://:secret@a.test:1,b.test,[fe80::1]:3/?ssl_ca_certs=/ca.pem")
    assert address.kind is Kind.CLUSTER
    assert address.is_tls
    assert address.hosts == (("a.test", 1), ("b.test", 6379), ("fe80::1", 3))
    assert address.server_url("c.test", 9) == "rediss://:secret@c.test:9/?ssl_ca_certs=%2Fca.pem"


def test_sentinels_have_a_login_of_their_own() -> None:
    address = parse_address("redis+sentinel://u:data@a.test,b.test:2/main/3?sentinel_password=s%26t")
    assert (address.kind, address.service, address.database) == (Kind.SENTINEL, "main", "3")
    assert address.hosts == (("a.test", 26379), ("b.test", 2))
    assert address.server_url("c.test", 9) == "redis://u:data@c.test:9/3"
    assert address.sentinel_url("a.test", 26379) == "redis://:s%26t@a.test:26379/"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("localhost:6379", "must be a URL"),
        ("http://a.test", "must be a URL"),
        ("redis+ring://a.test", "must be a URL"),
        ("redis://a.test,b.test", "several servers"),
        ("redis+sentinel://a.test", "name of the service"),
        ("redis+cluster://a.test/2", "only database 0"),
        ("redis+cluster://a.test/x", "number of a database"),
        ("redis+cluster://a.test:0", "no port"),
        ("redis+cluster://a.test:x", "no port"),
        ("redis+cluster://a b:1", "no host"),
        ("redis+cluster://[::1", "no host"),
        ("redis+cluster://a.test?retry=9", "'retry'"),
        ("redis://a.test/1#x", "%23"),
        ("unix+cluster:///a.sock", "one server"),
    ],
)
def test_what_is_no_address_is_refused_without_its_password(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_address(url)
    secret = url.replace("://", "://u:hunter2@")
    with pytest.raises(ConfigError) as caught:
        StoreOptions(redis_url=secret)
    assert "hunter2" not in str(caught.value)


def test_an_address_shows_no_password() -> None:
    assert "hunter2" not in repr(parse_address("redis+cluster://u:hunter2@a.test"))
    assert "hunter2" not in repr(StoreOptions(redis_url="redis+cluster://u:hunter2@a.test"))


def test_slots_are_those_of_the_cluster_specification() -> None:
    assert slot_of("123456789") == 0x31C3
    assert slot_of("{user1000}.following") == slot_of(b"{user1000}.followers")
    assert slot_of("foo{}{bar}") == slot_of(b"foo{}{bar}") != slot_of("bar")
    assert slot_of("foo{{bar}}zap") == slot_of("{bar")


def test_partitions_spread_evenly_over_slots() -> None:
    slots = [PartitionKeys("penstock", partition, 16).slot for partition in range(16)]
    assert sorted(slot * 16 // SLOTS for slot in slots) == list(range(16))
