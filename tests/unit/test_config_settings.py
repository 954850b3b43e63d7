"""Check that settings come from the right place, and that a wrong one is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from penstock import config
from penstock.config import SETTINGS, Settings, load, mask
from penstock.core.durability import Durability
from penstock.core.errors import ConfigError
from penstock.core.limits import Limits, TaskDefaults

KEY = "a-key-of-20-letters!"


def test_defaults_are_those_of_the_core() -> None:
    settings = load(environ={})
    assert settings.limits == Limits()
    assert settings.lease_ms == TaskDefaults().lease_ms
    assert (settings.host, settings.port, str(settings.data_dir)) == ("127.0.0.1", 5000, ".penstock")
    assert settings.server_url == "http://127.0.0.1:5000"
    assert settings.redis_url is None


def test_a_flag_wins_over_its_variable() -> None:
    environ = {"PENSTOCK_PORT": "5001"}
    assert load(environ=environ).port == 5001
    assert load(environ=environ, flags={"port": "5002", "host": None}).port == 5002
    assert load(environ={"PENSTOCK_PORT": ""}).port == 5000


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("PENSTOCK_QUEUES", "mail, bulk,mail", "queues", (("mail", None), ("bulk", None))),
        ("PENSTOCK_QUEUES", "mail:3, a:b,x:y:1", "queues", (("mail", 3), ("a:b", None), ("x:y", 1))),
        ("PENSTOCK_PRIORITIES", "Strict", "priorities", "strict"),
        ("PENSTOCK_MAX_DEPTH", "5000", "max_depth", 5_000),
        ("PENSTOCK_QUEUE_MAX_DEPTH", "mail:5000, a:b:0", "queue_max_depth", (("mail", 5_000), ("a:b", 0))),
        ("PENSTOCK_QUEUE_SLOTS", "reports:20, a:b:1", "queue_slots", (("reports", 20), ("a:b", 1))),
        ("PENSTOCK_MEMORY_PERCENT", "75", "memory_percent", 75),
        ("PENSTOCK_DURABILITY", "FSYNC", "durability", Durability.FSYNC),
        ("PENSTOCK_DURABILITY_REPLICAS", "2", "durability_replicas", 2),
        ("PENSTOCK_DURABILITY_TIMEOUT", "500ms", "durability_timeout_ms", 500),
        ("PENSTOCK_LEASE", "1m", "lease_ms", 60_000),
        ("PENSTOCK_LEASE", "2.5", "lease_ms", 2_500),
        ("PENSTOCK_DRAIN", "PT30S", "drain_ms", 30_000),
        ("PENSTOCK_PARTITIONS", "16", "partitions", 16),
        ("PENSTOCK_INSECURE", "yes", "insecure", True),
        ("PENSTOCK_INSECURE", "0", "insecure", False),
        ("PENSTOCK_PAYLOAD_BYTES", "2MiB", "payload_bytes", 2 * 1024 * 1024),
        ("PENSTOCK_PAYLOAD_BYTES", "512 kib", "payload_bytes", 512 * 1024),
        ("PENSTOCK_RETENTION", "7d", "retention_ms", 7 * 86_400_000),
        ("PENSTOCK_LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("PENSTOCK_API_KEYS", f"{KEY}1,{KEY}2\n", "api_keys", (f"{KEY}1", f"{KEY}2")),
        ("PENSTOCK_URL", "https://jobs.test/", "url", "https://jobs.test"),
        ("PENSTOCK_REDIS_URL", "unix:///run/redis.sock", "redis_url", "unix:///run/redis.sock"),
        ("PENSTOCK_NAMESPACE", "team.a", "namespace", "team.a"),
    ],
)
def test_values_are_parsed(variable: str, text: str, name: str, value: object) -> None:
    assert getattr(load(environ={variable: text}), name) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PENSTOCK_DURABILITY", "disk"),
        ("PENSTOCK_DURABILITY_TIMEOUT", "0"),
        ("PENSTOCK_PORT", "http"),
        ("PENSTOCK_PORT", "65536"),
        ("PENSTOCK_PORT", "-1"),
        ("PENSTOCK_PORT", "5000.5"),
        ("PENSTOCK_LEASE", "soon"),
        ("PENSTOCK_LEASE", "1"),
        ("PENSTOCK_DRAIN", "-5"),
        ("PENSTOCK_PARTITIONS", "3"),
        ("PENSTOCK_PARTITIONS", "8192"),
        ("PENSTOCK_INSECURE", "perhaps"),
        ("PENSTOCK_LOG_LEVEL", "loud"),
        ("PENSTOCK_LOG_FORMAT", "xml"),
        ("PENSTOCK_QUEUES", ","),
        ("PENSTOCK_QUEUES", "a\tb"),
        ("PENSTOCK_QUEUES", "a:0"),
        ("PENSTOCK_QUEUES", "a:1001"),
        ("PENSTOCK_QUEUES", "a:1,a:2"),
        ("PENSTOCK_PRIORITIES", "fair"),
        ("PENSTOCK_MAX_DEPTH", "-1"),
        ("PENSTOCK_QUEUE_MAX_DEPTH", "mail"),
        ("PENSTOCK_QUEUE_MAX_DEPTH", "mail:1,mail:2"),
        ("PENSTOCK_QUEUE_SLOTS", "mail"),
        ("PENSTOCK_QUEUE_SLOTS", "mail:0"),
        ("PENSTOCK_QUEUE_SLOTS", "mail:10001"),
        ("PENSTOCK_QUEUE_SLOTS", "mail:1,mail:2"),
        ("PENSTOCK_MEMORY_PERCENT", "0"),
        ("PENSTOCK_REDIS_URL", "localhost:6379"),
        ("PENSTOCK_URL", "localhost:5000"),
        ("PENSTOCK_PAYLOAD_BYTES", "1GB"),
        ("PENSTOCK_PAYLOAD_BYTES", "0"),
        ("PENSTOCK_CONCURRENCY", "0"),
        ("PENSTOCK_NAMESPACE", "a:b"),
        ("PENSTOCK_HOST", "a\x07b"),
        ("REDIS_URL", "memcached://x"),
    ],
)
def test_a_bad_value_is_named_by_its_key(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(environ={variable: text})
    assert error.value.key == variable
    assert str(error.value).startswith(f"{variable}: ")
    assert "\n" not in str(error.value)


def test_a_bad_flag_is_named_as_the_flag() -> None:
    with pytest.raises(ConfigError) as error:
        load(environ={}, flags={"port": "http"})
    assert error.value.key == "--port"


@pytest.mark.parametrize(
    ("variable", "hint"),
    [("PENSTOCK_PROT", "PENSTOCK_PORT"), ("PENSTOCK_API_KEY_FIEL", "PENSTOCK_API_KEY_FILE"), ("PENSTOCK_ZZZZZZ", "")],
)
def test_an_unknown_variable_stops_the_boot(variable: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="is not a setting") as error:
        load(environ={variable: "1"})
    assert error.value.key == variable
    assert hint in str(error.value)


def test_what_steers_the_tests_is_no_setting() -> None:
    assert load(environ={"PENSTOCK_TEST_REQUIRE": "all"}) == load(environ={})


def test_only_secrets_are_read_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "keys"
    secret.write_text(f"{KEY}1\n{KEY}2\n")
    assert load(environ={"PENSTOCK_API_KEYS_FILE": str(secret)}).api_keys == (f"{KEY}1", f"{KEY}2")
    with pytest.raises(ConfigError, match="PENSTOCK_PORT_FILE"):
        load(environ={"PENSTOCK_PORT_FILE": str(secret)})
    with pytest.raises(ConfigError, match="set too"):
        load(environ={"PENSTOCK_API_KEYS_FILE": str(secret), "PENSTOCK_API_KEYS": KEY})
    with pytest.raises(ConfigError, match="cannot read") as error:
        load(environ={"PENSTOCK_API_KEYS_FILE": str(tmp_path / "none")})
    assert error.value.key == "PENSTOCK_API_KEYS_FILE"
    secret.write_bytes(b"\xff\xfe" * 10)
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(environ={"PENSTOCK_API_KEYS_FILE": str(secret)})
    secret.write_bytes(b"x" * 100_000)
    with pytest.raises(ConfigError, match="larger than"):
        load(environ={"PENSTOCK_API_KEYS_FILE": str(secret)})
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        load(environ={"PENSTOCK_API_KEYS_FILE": str(secret)})


@pytest.mark.parametrize("keys", ["short", "with a space in it, no", "ümlaut-key-of-20-letters"])
def test_bad_keys_are_refused_without_showing_them(keys: str) -> None:
    with pytest.raises(ConfigError, match="each key needs") as error:
        load(environ={"PENSTOCK_API_KEYS": keys})
    assert keys not in str(error.value)


def test_secrets_are_masked() -> None:
    environ = {
        "PENSTOCK_API_KEYS": KEY,
        "PENSTOCK_API_KEY": KEY,
        "PENSTOCK_AI_API_KEY": KEY,
        "PENSTOCK_REDIS_URL": f"redis://user:{KEY}@redis.test:6379/0",
    }
    shown = repr(load(environ=environ))
    assert KEY not in shown
    assert "redis://user:***@redis.test:6379/0" in shown
    assert "port=5000" in shown
    assert KEY not in mask(f"unix:///run/redis.sock?password={KEY}")
    assert mask(None) == "None"


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"REDIS_URL": "redis://a.test:1", "REDIS_HOST": "b.test"}, "redis://a.test:1"),
        ({"PENSTOCK_REDIS_URL": "redis://c.test", "REDIS_URL": "redis://a.test:1"}, "redis://c.test"),
        ({"REDIS_HOST": "b.test"}, "redis://b.test:6379"),
        ({"REDIS_HOST": "b.test", "REDIS_PORT": "6380"}, "redis://b.test:6380"),
        ({"REDIS_PORT": "6380"}, "redis://127.0.0.1:6380"),
        ({"REDIS_HOST": "::1", "REDIS_PORT": "6380"}, "redis://[::1]:6380"),
        ({"REDIS_PORT": "tcp://10.0.0.1:6379"}, None),
        ({"REDIS_HOST": "redis", "REDIS_PORT": "tcp://10.0.0.1:6379"}, "redis://redis:6379"),
        ({}, None),
    ],
)
def test_which_redis_is_used(environ: dict[str, str], url: str | None) -> None:
    assert load(environ=environ).redis_url == url


def test_a_wrong_redis_port_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        load(environ={"REDIS_HOST": "b.test", "REDIS_PORT": "x"})
    assert error.value.key == "REDIS_PORT"


def test_every_setting_is_complete() -> None:
    assert len({setting.env for setting in SETTINGS}) == len({setting.flag for setting in SETTINGS}) == len(SETTINGS)
    for setting in SETTINGS:
        assert setting.env.startswith("PENSTOCK_")
        assert setting.help.endswith(".")
        assert "\n" not in setting.help
        assert setting.parts


def test_defaults_that_are_shown_are_true() -> None:
    for setting in SETTINGS:
        default = getattr(Settings(), setting.name)
        if default not in (None, (), False) and setting.shown != "one a core":
            assert setting.parse(setting.shown) == (Path(".penstock") if setting.name == "data_dir" else default)


def test_the_environment_of_children_holds_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_PARENT_FD", "7")
    monkeypatch.setenv("PENSTOCK_API_KEYS_FILE", "/run/keys")
    monkeypatch.setenv("PENSTOCK_PORT", "1")
    environ = config.environ_for_children({"port": "5001", "api_keys": KEY, "host": None})
    assert environ["PENSTOCK_PORT"] == "5001"
    assert environ["PENSTOCK_API_KEYS"] == KEY
    assert not {"PENSTOCK_API_KEYS_FILE", "PENSTOCK_PARENT_FD", "PENSTOCK_HOST"} & set(environ)
    assert config.take_parent_descriptor() == 7
    assert "PENSTOCK_PARENT_FD" not in os.environ
    assert config.take_parent_descriptor() is None


def test_options_of_each_part_are_filled() -> None:
    settings = load(
        environ={
            "PENSTOCK_QUEUES": "mail",
            "PENSTOCK_PROCESSES": "2",
            "PENSTOCK_POOL_PROCESSES": "3",
            "PENSTOCK_PROCESS_SILENCE": "90s",
            "PENSTOCK_AI_MODEL": "m",
            "PENSTOCK_MAX_WAIT": "5s",
            "PENSTOCK_PARTITIONS": "4",
            "PENSTOCK_LOG_FORMAT": "json",
            "PENSTOCK_ALLOWED_HOSTS": "jobs.test",
        }
    )
    worker = settings.worker_options(("mine",))
    assert (worker.queues, worker.processes, worker.modules, worker.log_json) == (("mail",), 2, ("mine",), True)
    assert (worker.pool_processes, worker.process_silence_ms) == (3, 90_000)
    assert (worker.queue_weights, worker.priorities, worker.queue_slots) == (None, "weighted", ())
    bounded = load(environ={"PENSTOCK_QUEUE_SLOTS": "bulk:20"}).worker_options(())
    assert (bounded.queues, bounded.queue_slots) == (None, (("bulk", 20),))
    weighted = load(environ={"PENSTOCK_QUEUES": "mail:3,bulk", "PENSTOCK_PRIORITIES": "strict"}).worker_options(())
    assert (weighted.queues, weighted.queue_weights) == (("mail", "bulk"), (3, 1))
    assert weighted.priorities == "strict"
    assert worker.ai.model == "m"
    assert settings.store_options("redis://x").partitions == 4
    assert settings.api_options().limits.wait_ms == 5_000
    assert settings.api_options().allowed_hosts == ("jobs.test",)


def test_slots_of_a_queue_that_is_not_served_are_named() -> None:
    environ = {"PENSTOCK_QUEUES": "reports:3,mail", "PENSTOCK_QUEUE_SLOTS": "reprots:20,mail:5,mial:1"}
    with pytest.raises(ConfigError, match=r"'reprots', 'mial' are not among .*: 'reports', 'mail'") as error:
        load(environ=environ).worker_options(())
    assert error.value.key == "PENSTOCK_QUEUE_SLOTS"


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"PENSTOCK_HOST": "0.0.0.0"}, "PENSTOCK_API_KEYS"),
        ({"PENSTOCK_AI_BASE_URL": "http://127.0.0.1:1/v1"}, "PENSTOCK_AI_MODEL"),
        ({"PENSTOCK_AI_BASE_URL": "http://u:p@127.0.0.1/v1", "PENSTOCK_AI_MODEL": "m"}, "PENSTOCK_AI_BASE_URL"),
    ],
)
def test_settings_that_do_not_go_together_are_named(environ: dict[str, str], key: str) -> None:
    settings = load(environ=environ)
    with pytest.raises(ConfigError) as error:
        _: Any = (settings.api_options(), settings.ai_settings())
    assert error.value.key == key
    assert str(error.value).count(key) == 1
