"""Read the environment and the secret files, once, and fill the options of every part.

``Settings`` is the one table: each field carries its variable, flag, parser and help. The flags of ``up``, ``api`` and
``worker`` and the page ``docs/reference/settings.md`` are made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from penstock.config import read
from penstock.core.durability import Durability
from penstock.core.errors import ConfigError
from penstock.core.limits import KIB, Limits, TaskDefaults

if TYPE_CHECKING:
    from penstock.api.options import ApiOptions
    from penstock.handlers.ai.settings import AISettings
    from penstock.store import StoreOptions
    from penstock.worker.options import WorkerOptions

PREFIX = "PENSTOCK_"
_LIMITS = Limits()
_MAX_FILE_BYTES = 64 * KIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Describe one setting; ``parts`` names the sections it belongs to, ``shown`` its default as people read it."""

    name: str = ""
    env: str
    help: str
    parse: Callable[[str], Any]
    parts: tuple[str, ...]
    flag: str
    shown: str
    secret: bool = False
    is_switch: bool = False

    @property
    def env_file(self) -> str:
        """Return the variable that names a file with the value; only for secrets."""
        return f"{self.env}_FILE"


def _setting(
    env: str,
    default: Any,
    parse: Callable[[str], Any],
    text: str,
    *parts: str,
    shown: str | None = None,
    secret: bool = False,
    is_switch: bool = False,
) -> Any:
    flag = "--" + env.removeprefix(PREFIX).lower().replace("_", "-")
    shown = shown if shown is not None else ("" if default is None else str(default))
    setting = Setting(
        env=env, help=text, parse=parse, parts=parts, flag=flag, shown=shown, secret=secret, is_switch=is_switch
    )
    return dataclasses.field(default=default, metadata={"setting": setting})


_DAY_S = 86_400
_YEAR_MS = 366 * _DAY_S * 1000


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """Hold every setting, parsed. Times in ms, sizes in bytes; None means that it was not given."""

    url: str | None = _setting(
        "PENSTOCK_URL", None, read.url("http", "https"), "Address of the server that client commands talk to.",
        "client",
        shown="http://127.0.0.1:<port>",
    )  # fmt: skip
    api_key: str | None = _setting(
        "PENSTOCK_API_KEY", None, read.text, "Key that client commands send.", "client", secret=True
    )
    host: str = _setting("PENSTOCK_HOST", "127.0.0.1", read.text, "Address that the API listens on.", "api")
    port: int = _setting(
        "PENSTOCK_PORT", 5000, read.integer(0, 65_535), "Port that the API listens on; 0 takes a free one.", "api"
    )
    api_keys: tuple[str, ...] = _setting(
        "PENSTOCK_API_KEYS", (), read.keys, "Keys that the API accepts, with commas between them.", "api",
        shown="none", secret=True,
    )  # fmt: skip
    insecure: bool = _setting(
        "PENSTOCK_INSECURE", False, read.boolean, "Serve other addresses than loopback without keys.", "api",
        shown="false", is_switch=True,
    )  # fmt: skip
    allowed_hosts: tuple[str, ...] = _setting(
        "PENSTOCK_ALLOWED_HOSTS", (), read.names, "Names accepted in `Host` beside loopback names, with commas.", "api",
        shown="loopback names; any with keys",
    )  # fmt: skip
    redis_url: str | None = _setting(
        "PENSTOCK_REDIS_URL", None, read.redis_url,
        "Redis or Valkey: a server, `redis+cluster://` or `redis+sentinel://`. Else `REDIS_URL`, then `REDIS_HOST` and "
        "`REDIS_PORT`, then the data folder's.",
        "store", shown="the instance in the data folder", secret=True,
    )  # fmt: skip
    data_dir: Path = _setting(  # noqa: RUF009 - makes a dataclass field
        "PENSTOCK_DATA_DIR", Path(".penstock"), lambda value: Path(read.text(value)), "Folder of the embedded server.",
        "store", shown="./.penstock",
    )  # fmt: skip
    namespace: str = _setting("PENSTOCK_NAMESPACE", "penstock", read.namespace, "First part of every key.", "store")
    partitions: int = _setting(
        "PENSTOCK_PARTITIONS", 1, read.power_of_two,
        "Partitions of the data, a power of two; fixed once jobs are stored. One is right for one server.", "store",
    )  # fmt: skip
    durability: Durability = _setting(  # noqa: RUF009 - makes a dataclass field
        "PENSTOCK_DURABILITY", Durability.MEMORY, read.durability,
        "What a 2xx to a submit means. `memory`: Redis has the job in memory. `fsync`: it is on disk (needs Redis or "
        "Valkey 7.2 with `appendonly yes` and `appendfsync always`; `penstock up` sets it for its own). `replica`: the "
        "replicas have it too. A server that cannot give it stops the start.", "durability", shown="memory",
    )  # fmt: skip
    durability_replicas: int = _setting(
        "PENSTOCK_DURABILITY_REPLICAS", 0, read.integer(0, 100),
        "Replicas that must have a job with `replica`: all that may be elected. 0 is as many as are connected at the "
        "start.", "durability", shown="those connected at the start",
    )  # fmt: skip
    durability_timeout_ms: int = _setting(
        "PENSTOCK_DURABILITY_TIMEOUT", 5_000, read.duration(50, 60_000),
        "Time that disk or replicas get to confirm; then a submit is answered with 503.", "durability", shown="5s",
    )  # fmt: skip
    queues: tuple[tuple[str, int | None], ...] | None = _setting(
        "PENSTOCK_QUEUES", None, read.queues,
        "Queues that the worker serves, with weights from 1 to 1000 if you like: `default:3,mail:1`; 1 where none is "
        "given. With strict priorities and no weights, in this order.", "worker",
        shown="default, and those its tasks name",
    )  # fmt: skip
    queue_slots: tuple[tuple[str, int], ...] = _setting(
        "PENSTOCK_QUEUE_SLOTS", (), read.queue_slots,
        "Most jobs of a queue that run at once in a process, async, plain and in the pool each: `reports:20,mail:5`. "
        "Without it one of several queues leaves an eighth of the slots to the others. A queue that the worker does "
        "not serve stops the start.", "worker",
        shown="all slots; of several queues seven eighths each",
    )  # fmt: skip
    priorities: str = _setting(
        "PENSTOCK_PRIORITIES", "weighted", read.choice("weighted", "strict"),
        "How priorities share a worker. `weighted`: critical first, then high, normal and low 16 : 4 : 1. `strict`: "
        "each before the next, so that a lower one may wait for ever.", "worker",
    )  # fmt: skip
    concurrency: int = _setting(
        "PENSTOCK_CONCURRENCY", 100, read.integer(1, 10_000), "Async jobs that run at once.", "worker"
    )
    threads: int = _setting("PENSTOCK_THREADS", 8, read.integer(1, 1_000), "Plain jobs that run at once.", "worker")
    processes: int = _setting(
        "PENSTOCK_PROCESSES", 1, read.integer(1, 256),
        "Processes that run jobs, each with the concurrency, threads and pool that are set.", "worker",
    )  # fmt: skip
    pool_processes: int = _setting(
        "PENSTOCK_POOL_PROCESSES", 0, read.integer(0, 1_000),
        'Processes of the pool for tasks with `executor="process"`; 0 is one a core.', "worker",
        shown="one a core",
    )  # fmt: skip
    process_silence_ms: int = _setting(
        "PENSTOCK_PROCESS_SILENCE", 60_000, read.duration(2_000, 86_400_000),
        "Time after which a process that gives no sign of life is killed; until then its leases are renewed for it.",
        "worker", shown="60s",
    )  # fmt: skip
    unwritten_bytes: int = _setting(
        "PENSTOCK_UNWRITTEN_BYTES", 64 * 1024 * 1024, read.size,
        "Results that each process keeps while Redis is away; what is over is given up, and its job runs again.",
        "worker", shown="64MiB",
    )  # fmt: skip
    lease_ms: int = _setting(
        "PENSTOCK_LEASE", TaskDefaults().lease_ms, read.duration(2_000, 3_600_000),
        "Time after which the jobs of a dead worker start elsewhere.", "worker", shown="15s",
    )  # fmt: skip
    drain_ms: int = _setting(
        "PENSTOCK_DRAIN", 25_000, read.duration(0, 3_600_000),
        "Time that running jobs get when the worker is told to stop; then they are handed back, uncounted.", "worker",
        shown="25s",
    )  # fmt: skip
    log_level: str = _setting(
        "PENSTOCK_LOG_LEVEL",
        "info",
        read.choice("debug", "info", "warning", "error"),
        "Least level that is logged.",
        "logs",
    )
    log_format: str = _setting(
        "PENSTOCK_LOG_FORMAT", "auto", read.choice("auto", "json", "console"),
        "Form of the log; `auto` is for people on a terminal, else JSON lines.", "logs",
    )  # fmt: skip
    ai_base_url: str | None = _setting(
        "PENSTOCK_AI_BASE_URL", None, read.url("http", "https"),
        "OpenAI-style server for jobs of type `ai`. Without it summaries are made on the machine.", "ai",
        shown="none",
    )  # fmt: skip
    ai_api_key: str | None = _setting(
        "PENSTOCK_AI_API_KEY", None, read.text, "Key sent to that server.", "ai", shown="none", secret=True
    )
    ai_model: str | None = _setting(
        "PENSTOCK_AI_MODEL", None, read.text, "Model that is asked for.", "ai", shown="none"
    )
    ai_timeout_ms: int = _setting(
        "PENSTOCK_AI_TIMEOUT", 60_000, read.duration(1, 3_600_000), "Longest time of one call to that server.", "ai",
        shown="60s",
    )  # fmt: skip
    payload_bytes: int = _setting(
        "PENSTOCK_PAYLOAD_BYTES", _LIMITS.payload_bytes, read.size, "Largest input of a job.", "limits", shown="1MiB"
    )
    result_bytes: int = _setting(
        "PENSTOCK_RESULT_BYTES", _LIMITS.result_bytes, read.size, "Largest result of a job.", "limits", shown="1MiB"
    )
    error_bytes: int = _setting(
        "PENSTOCK_ERROR_BYTES",
        _LIMITS.error_bytes,
        read.size,
        "Part of an error that is kept.",
        "limits",
        shown="16KiB",
    )
    log_bytes: int = _setting(
        "PENSTOCK_LOG_BYTES", _LIMITS.log_bytes, read.size, "Bytes of a job's log that are kept; the oldest lines go.",
        "limits", shown="256KiB",
    )  # fmt: skip
    log_lines: int = _setting(
        "PENSTOCK_LOG_LINES", _LIMITS.log_lines, read.integer(0, 100_000),
        "Lines of a job's log that are kept; the oldest go.", "limits",
    )  # fmt: skip
    stream_bytes: int = _setting(
        "PENSTOCK_STREAM_BYTES", _LIMITS.stream_bytes, read.size,
        "Bytes of a job's stream that are kept; the oldest chunks go.", "limits", shown="1MiB",
    )  # fmt: skip
    stream_chunks: int = _setting(
        "PENSTOCK_STREAM_CHUNKS", _LIMITS.stream_chunks, read.integer(0, 1_000_000),
        "Chunks of a job's stream that are kept; the oldest go.", "limits",
    )  # fmt: skip
    batch_items: int = _setting(
        "PENSTOCK_BATCH_ITEMS", _LIMITS.batch_items, read.integer(1, 1_000_000), "Most jobs in a batch.", "limits"
    )
    batch_bytes: int = _setting(
        "PENSTOCK_BATCH_BYTES", _LIMITS.batch_bytes, read.size, "Largest body of a batch.", "limits", shown="64MiB"
    )
    wait_ms: int = _setting(
        "PENSTOCK_MAX_WAIT",
        _LIMITS.wait_ms,
        read.duration(1_000, 3_600_000),
        "Longest `?wait=`.",
        "limits",
        shown="60s",
    )
    retention_ms: int = _setting(
        "PENSTOCK_RETENTION", _LIMITS.retention_ms, read.duration(0, 10 * _YEAR_MS),
        "Time that completed, cancelled and expired jobs are kept.", "limits", shown="24h",
    )  # fmt: skip
    failed_retention_ms: int = _setting(
        "PENSTOCK_FAILED_RETENTION", _LIMITS.failed_retention_ms, read.duration(0, 10 * _YEAR_MS),
        "Time that failed jobs are kept.", "limits", shown="30d",
    )  # fmt: skip
    finished_jobs: int = _setting(
        "PENSTOCK_FINISHED_JOBS", _LIMITS.finished_jobs, read.integer(0, 100_000_000),
        "Most finished jobs that are kept; the oldest go.", "limits",
    )  # fmt: skip
    dead_letters: int = _setting(
        "PENSTOCK_DEAD_LETTERS", _LIMITS.dead_letters, read.integer(0, 100_000_000),
        "Most failed jobs that are kept of a queue; the oldest go.", "limits",
    )  # fmt: skip
    max_lost: int = _setting(
        "PENSTOCK_MAX_LOST", _LIMITS.max_lost, read.integer(1, 100),
        "Lost workers after which a job is poisoned, if it was alone in its process at the last of them.", "limits",
    )  # fmt: skip
    alone_after: int = _setting(
        "PENSTOCK_ALONE_AFTER", _LIMITS.alone_after, read.integer(1, 100),
        "Lost workers after which a job runs in a process of its own.", "limits",
    )  # fmt: skip
    unknown_task_ms: int = _setting(
        "PENSTOCK_UNKNOWN_TASK_AFTER", _LIMITS.unknown_task_ms, read.duration(1_000, _YEAR_MS),
        "Time after which a job fails that no worker knows the task of.", "limits", shown="24h",
    )  # fmt: skip
    idempotency_ms: int = _setting(
        "PENSTOCK_IDEMPOTENCY_RETENTION", _LIMITS.idempotency_ms, read.duration(1_000, _YEAR_MS),
        "Time for which an `Idempotency-Key` is remembered.", "limits", shown="24h",
    )  # fmt: skip

    max_depth: int = _setting(
        "PENSTOCK_MAX_DEPTH", _LIMITS.max_depth, read.integer(0, 100_000_000),
        "Most jobs that may wait in a queue, queued, scheduled or for a retry; further submits get 429. 0 is no bound.",
        "limits", shown="none",
    )  # fmt: skip
    queue_max_depth: tuple[tuple[str, int], ...] = _setting(
        "PENSTOCK_QUEUE_MAX_DEPTH", _LIMITS.queue_max_depth, read.depths,
        "The same for single queues: `mail:5000,bulk:0`.", "limits", shown="none",
    )  # fmt: skip
    memory_percent: int = _setting(
        "PENSTOCK_MEMORY_PERCENT", _LIMITS.memory_percent, read.integer(1, 100),
        "Part of the Redis server's `maxmemory` above which the API answers submits with 503, while what was accepted "
        "still runs; 100 leaves it to the server.", "limits",
    )  # fmt: skip
    schedules: int = _setting(
        "PENSTOCK_SCHEDULES",
        _LIMITS.schedules,
        read.integer(0, 1_000_000),
        "Most schedules that there may be.",
        "limits",
    )

    event_streams: int = _setting(
        "PENSTOCK_EVENT_STREAMS", 1_000, read.integer(0, 1_000_000),
        "Clients that may follow a job at once through one API process; more get 503.", "limits",
    )  # fmt: skip

    def __repr__(self) -> str:
        """Show every setting, secrets masked."""
        values = ((setting, getattr(self, setting.name)) for setting in SETTINGS)
        shown = (f"{setting.name}={mask(value) if setting.secret else repr(value)}" for setting, value in values)
        return f"Settings({', '.join(shown)})"

    @property
    def server_url(self) -> str:
        """Return the address that client commands talk to."""
        return self.url or f"http://127.0.0.1:{self.port or 5000}"

    @property
    def log_json(self) -> bool | None:
        """Return the form of the log as ``configure_logging`` takes it."""
        return None if self.log_format == "auto" else self.log_format == "json"

    @property
    def limits(self) -> Limits:
        return Limits(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)})

    @property
    def _queue_weights(self) -> tuple[int, ...] | None:
        if self.queues is None or all(weight is None for _, weight in self.queues):
            return None
        return tuple(weight or 1 for _, weight in self.queues)

    def store_options(self, redis_url: str) -> StoreOptions:
        """Return the store's options; ``redis_url`` is ours or that of a running instance."""
        from penstock.store import StoreOptions

        return StoreOptions(
            redis_url=redis_url,
            namespace=self.namespace,
            partitions=self.partitions,
            limits=self.limits,
            durability=self.durability,
            durability_replicas=self.durability_replicas,
            durability_timeout_ms=self.durability_timeout_ms,
        )

    def api_options(self) -> ApiOptions:
        """Return the API's options. Raises ConfigError."""
        from penstock.api.options import ApiOptions

        return ApiOptions(
            host=self.host,
            port=self.port,
            api_keys=self.api_keys,
            insecure=self.insecure,
            allowed_hosts=self.allowed_hosts,
            limits=self.limits,
            drain_ms=self.drain_ms,
            event_streams=self.event_streams,
        )

    def worker_options(self, modules: tuple[str, ...]) -> WorkerOptions:
        """Return the options of a worker that runs the tasks of ``modules``. Raises ConfigError."""
        from penstock.worker.options import WorkerOptions

        return WorkerOptions(
            queues=None if self.queues is None else tuple(name for name, _ in self.queues),
            queue_weights=self._queue_weights,
            queue_slots=self.queue_slots,
            priorities=self.priorities,
            modules=modules,
            concurrency=self.concurrency,
            threads=self.threads,
            processes=self.processes,
            pool_processes=self.pool_processes,
            process_silence_ms=self.process_silence_ms,
            unwritten_bytes=self.unwritten_bytes,
            lease_ms=self.lease_ms,
            drain_ms=self.drain_ms,
            ai=self.ai_settings(),
            limits=self.limits,
            log_json=self.log_json,
            log_level=self.log_level,
        )

    def ai_settings(self) -> AISettings:
        """Return where AI jobs run. Raises ConfigError."""
        from penstock.handlers.ai.settings import AISettings

        try:
            return AISettings(
                base_url=self.ai_base_url, api_key=self.ai_api_key, model=self.ai_model, timeout_ms=self.ai_timeout_ms
            )
        except ValueError as error:
            key = next((setting.env for setting in SETTINGS if setting.env in str(error)), "PENSTOCK_AI_BASE_URL")
            raise ConfigError(key, str(error).removeprefix(key).strip()) from error


def _table() -> tuple[Setting, ...]:
    return tuple(
        dataclasses.replace(field.metadata["setting"], name=field.name) for field in dataclasses.fields(Settings)
    )


#: Every setting, in the order of the docs.
SETTINGS: tuple[Setting, ...] = _table()

#: Not a setting: how ``penstock up`` hands its children the pipe that tells of its end (``penstock.embedded``).
_PARENT_FD = "PENSTOCK_PARENT_FD"
#: What steers the tests; a shell that has run them may still hold it.
_TEST_PREFIX = "PENSTOCK_TEST_"


def mask(value: Any) -> str:
    """Return what may be shown of a secret: whether it is set, and of an address all but its password."""
    if not value:
        return repr(value)
    if isinstance(value, str) and "://" in value:
        parts = urlsplit(value)
        if parts.password is None and not parts.query:
            return repr(value)
        user, at, host = parts.netloc.rpartition("@")
        netloc = f"{user.partition(':')[0]}:***{at}{host}" if at and ":" in user else parts.netloc
        return repr(urlunsplit(parts._replace(netloc=netloc, query="***" if parts.query else "")))
    return "'***'"


def load(*, environ: Mapping[str, str] | None = None, flags: Mapping[str, str | None] | None = None) -> Settings:
    """Read every setting: a flag (by field name) wins over its variable, which wins over the default.

    An empty variable counts as not set, as in a Compose file.

    Raises:
        ConfigError: a variable is unknown or a value wrong; it names the flag or variable.
    """
    given = os.environ if environ is None else environ
    _refuse_unknown(given)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        flag = (flags or {}).get(setting.name)
        key, text = (setting.flag, flag) if flag is not None else _read(setting, given)
        if text is not None:
            values[setting.name] = _parse(setting, key, text)
    if "redis_url" not in values and (found := _conventional_redis_url(given)) is not None:
        values["redis_url"] = found
    return Settings(**values)


def load_client(*, environ: Mapping[str, str] | None = None) -> Settings:
    """Read only what a client needs, in a program that may have other settings wrong or unknown. Raises ConfigError."""
    given = os.environ if environ is None else environ
    values = {}
    for setting in SETTINGS:
        if "client" in setting.parts or setting.name == "port":
            key, text = _read(setting, given)
            if text is not None:
                values[setting.name] = _parse(setting, key, text)
    return Settings(**values)


def environ_for_children(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Return this process's environment with the flags written into it as their variables."""
    environ = {name: value for name, value in os.environ.items() if name != _PARENT_FD}
    for setting in SETTINGS:
        value = flags.get(setting.name)
        if value is not None:
            environ.pop(setting.env_file, None)
            environ[setting.env] = value
    return environ


def take_parent_descriptor() -> int | None:
    """Return the descriptor that a supervisor left us, once; processes that we start do not see it."""
    text = os.environ.pop(_PARENT_FD, "")
    return int(text) if text.isdigit() else None


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {setting.env for setting in SETTINGS}
    known |= {setting.env_file for setting in SETTINGS if setting.secret}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name != _PARENT_FD and not name.startswith(_TEST_PREFIX):
            near = difflib.get_close_matches(name, sorted(known), n=1)
            raise ConfigError(name, "is not a setting" + (f"; did you mean {near[0]}?" if near else ""))


def _read(setting: Setting, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the variable that was used and its text, None when neither it nor its file is given."""
    text = environ.get(setting.env) or None
    path = environ.get(setting.env_file) or None if setting.secret else None
    if path is None:
        return setting.env, text
    if text is not None:
        raise ConfigError(setting.env_file, f"{setting.env} is set too; give one of the two")
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigError(setting.env_file, f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        return setting.env_file, content.decode().strip()
    except OSError as error:
        raise ConfigError(setting.env_file, f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(setting.env_file, f"{path} is not UTF-8 text") from error


def _parse(setting: Setting, key: str, text: str) -> Any:
    try:
        return setting.parse(text.strip())
    except ValueError as error:
        shown = "" if setting.secret or len(text) > 100 else f", not {text!r}"
        raise ConfigError(key, f"{error}{shown}") from None


def _conventional_redis_url(environ: Mapping[str, str]) -> str | None:
    """Return the address from the variables that other programs use too."""
    if url := environ.get("REDIS_URL"):
        return str(_parse(_by_name("redis_url"), "REDIS_URL", url))
    host, port = environ.get("REDIS_HOST"), environ.get("REDIS_PORT")
    if not host and not port:
        return None
    try:
        number = read.integer(1, 65_535)(port or "6379")
    except ValueError as error:
        # Kubernetes sets REDIS_PORT=tcp://… for a service named "redis"; that is nobody's setting.
        if not host or str(port).startswith("tcp://"):
            return f"redis://{host}:6379" if host else None
        raise ConfigError("REDIS_PORT", f"{error}, not {port!r}") from None
    host = host or "127.0.0.1"
    return f"redis://[{host}]:{number}" if ":" in host else f"redis://{quote(host)}:{number}"


def _by_name(name: str) -> Setting:
    return next(setting for setting in SETTINGS if setting.name == name)
