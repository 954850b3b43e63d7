"""Declare every metric once: names and labels are a contract with dashboards and alerts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.core.job import MemoryUse, QueueInfo
from penstock.core.states import Priority, State

#: Both Prometheus and OpenMetrics scrapers read this format.
CONTENT_TYPE = "text/plain; version=0.0.4"


@dataclasses.dataclass(frozen=True)
class Declared:
    """Declare one metric; ``kind`` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


#: Counters of jobs by the name that ``Store.counters()`` gives them.
JOB_COUNTERS: Mapping[str, Declared] = {
    name: Declared(f"penstock_jobs_{name}_total", "counter", ("queue",), text)
    for name, text in {
        "submitted": "Jobs accepted.",
        "started": "Attempts started, each claim counted.",
        "completed": "Jobs that completed.",
        "failed": "Jobs that failed for good and went to the dead letter.",
        "retried": "Attempts that failed and will be tried again.",
        "cancelled": "Jobs cancelled.",
        "expired": "Jobs that had not started before they expired.",
        "lost": "Attempts whose worker was lost.",
        "poisoned": "Jobs that failed because their workers were lost too often.",
        "redriven": "Jobs queued again by hand.",
        "deferred": "Times that a job was put off because no worker knew its task.",
        "pruned": "Finished jobs removed after their retention.",
        "dropped": "Finished jobs removed early because there were more than `finished_jobs`.",
        "refused": "Jobs refused because their queue held `max_depth` waiting jobs.",
        "conflicts": "Jobs refused because another one held their unique key.",
        "existing": "Submits answered with the job that held their unique key.",
        "replaced": "Jobs cancelled because a newer one replaced them under their unique key.",
    }.items()
} | {
    "dead_dropped": Declared(
        "penstock_dead_letters_dropped_total",
        "counter",
        ("queue",),
        "Dead letters removed early because their queue held more than `dead_letters`.",
    ),
    "result_refused": Declared(
        "penstock_results_refused_total",
        "counter",
        ("queue",),
        "Results that were larger than `result_bytes`, so that their job failed.",
    ),
    "error_cut": Declared(
        "penstock_errors_cut_total",
        "counter",
        ("queue",),
        "Errors that were larger than `error_bytes` and lost their middle.",
    ),
    "log_dropped": Declared(
        "penstock_log_lines_dropped_total", "counter", ("queue",), "Lines of jobs' logs that are not kept."
    ),
    "stream_dropped": Declared(
        "penstock_stream_chunks_dropped_total", "counter", ("queue",), "Chunks of jobs' streams that are not kept."
    ),
}
#: Counters of schedules' ticks by the name that ``Store.counters()`` gives them.
TICK_COUNTERS: Mapping[str, Declared] = {
    f"ticks_{name}": Declared(f"penstock_schedule_ticks_{name}_total", "counter", ("queue",), text)
    for name, text in {
        "fired": "Ticks of schedules that submitted a job.",
        "skipped": "Ticks that submitted none: the job before was not final (`overlap`), or the queue was full.",
        "missed": "Ticks that came too late: nothing ran, or the schedule was paused.",
    }.items()
}
QUEUE_DEPTH = Declared("penstock_queue_depth", "gauge", ("queue", "priority"), "Jobs that wait to be claimed.")
QUEUE_PAUSED = Declared("penstock_queue_paused", "gauge", ("queue",), "1 while the queue is paused, else 0.")
JOBS_RUNNING = Declared("penstock_jobs_running", "gauge", ("queue",), "Jobs that run now.")
JOBS_DELAYED = Declared("penstock_jobs_delayed", "gauge", ("queue",), "Jobs scheduled or waiting for a retry.")
DEAD_LETTERS = Declared("penstock_dead_letters", "gauge", ("queue",), "Failed jobs that are kept.")
WORKERS = Declared("penstock_workers", "gauge", (), "Workers seen in the last 60 s.")
STUCK_SLOTS = Declared(
    "penstock_stuck_slots", "gauge", (), "Slots of workers that are held by handlers which outlived their timeouts."
)
SINCE_LAST_CLAIM = Declared(
    "penstock_seconds_since_last_claim",
    "gauge",
    ("worker",),
    "Time since a worker last had an answer to a claim; under 20 s for a well one, growing while the store is away.",
)
STORE_UP = Declared("penstock_store_up", "gauge", (), "1 when the store answered this scrape in time, else 0.")
BUILD_INFO = Declared("penstock_build_info", "gauge", ("version",), "Always 1; the label is the version.")
HTTP_REQUESTS = Declared(
    "penstock_http_requests_total", "counter", ("method", "route", "status"), "Requests answered by this process."
)
SUBMITS_REPLAYED = Declared(
    "penstock_submits_replayed_total",
    "counter",
    (),
    "Submits answered again by this process, by their idempotency key.",
)
HTTP_DURATION = Declared(
    "penstock_http_request_duration_seconds",
    "histogram",
    ("route",),
    "Time to answer a request; waiting for a job (`wait`) is part of it.",
)

STORE_MEMORY = Declared("penstock_store_memory_bytes", "gauge", (), "Memory that the Redis server uses.")
STORE_MEMORY_LIMIT = Declared(
    "penstock_store_memory_limit_bytes", "gauge", (), "Its `maxmemory`; 0 means that it has none."
)
DURABILITY_WAIT = Declared(
    "penstock_durability_wait_seconds",
    "histogram",
    (),
    "Time from sending a group of submits until the disk or the replicas confirmed it, or the wait ended without; "
    "empty with durability `memory`.",
)
DURABILITY_UNCONFIRMED = Declared(
    "penstock_durability_unconfirmed_total",
    "counter",
    (),
    "Groups of submits that neither disk nor replicas confirmed in time; their submits got 503.",
)
SUBMITS_REFUSED = Declared(
    "penstock_submits_refused_total",
    "counter",
    ("code",),
    "Submits refused by a limit in this process: requests, and single jobs of a batch of which others were taken.",
)
EVENT_STREAMS = Declared(
    "penstock_event_streams", "gauge", (), "Clients that follow a job through this process (`GET /jobs/{id}/events`)."
)
#: The codes of problems that are limits: of the queue, of the store's memory, of sizes and counts.
REFUSALS = ("queue_full", "store_full", "body_too_large")

METRICS: tuple[Declared, ...] = (
    *JOB_COUNTERS.values(),
    *TICK_COUNTERS.values(),
    QUEUE_DEPTH,
    QUEUE_PAUSED,
    JOBS_RUNNING,
    JOBS_DELAYED,
    DEAD_LETTERS,
    WORKERS,
    STUCK_SLOTS,
    SINCE_LAST_CLAIM,
    STORE_UP,
    STORE_MEMORY,
    STORE_MEMORY_LIMIT,
    BUILD_INFO,
    HTTP_REQUESTS,
    SUBMITS_REPLAYED,
    HTTP_DURATION,
    SUBMITS_REFUSED,
    DURABILITY_WAIT,
    DURABILITY_UNCONFIRMED,
    EVENT_STREAMS,
)

_DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreSnapshot:
    """Hold what the store told one scrape."""

    counters: Mapping[tuple[str, str], int]
    queues: Sequence[QueueInfo]
    workers: int
    stuck_slots: int
    memory: MemoryUse


class HttpMetrics:
    """Count the requests of this process."""

    def __init__(self) -> None:
        # One more time series for each counter, which nothing reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        self._streams = Gauge(EVENT_STREAMS.name, EVENT_STREAMS.help, registry=self.registry)
        self._requests = Counter(HTTP_REQUESTS.name, HTTP_REQUESTS.help, HTTP_REQUESTS.labels, registry=self.registry)
        self._replayed = Counter(SUBMITS_REPLAYED.name, SUBMITS_REPLAYED.help, registry=self.registry)
        self._duration = Histogram(
            HTTP_DURATION.name,
            HTTP_DURATION.help,
            HTTP_DURATION.labels,
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        refused = Counter(SUBMITS_REFUSED.name, SUBMITS_REFUSED.help, SUBMITS_REFUSED.labels, registry=self.registry)
        # There from the start: a rate misses the start of one that appears late.
        self._refused = {code: refused.labels(code) for code in REFUSALS}
        self._waits = Histogram(
            DURABILITY_WAIT.name, DURABILITY_WAIT.help, buckets=_DURATION_BUCKETS, registry=self.registry
        )
        self._unconfirmed = Counter(DURABILITY_UNCONFIRMED.name, DURABILITY_UNCONFIRMED.help, registry=self.registry)
        # Finding a child by its labels costs more than counting in it.
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def watch_streams(self, count: Callable[[], int]) -> None:
        """Show how many event streams are open."""
        self._streams.set_function(count)

    def refused(self, code: str) -> None:
        """Count a submit that got a problem, if a limit was the reason."""
        if code in self._refused:
            self._refused[code].inc()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; ``method`` and ``route`` must come from small closed sets."""
        key = (method, route, status)
        children = self._known.get(key)
        if children is None:
            children = (self._requests.labels(method, route, str(status)), self._duration.labels(route))
            self._known[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def observe_wait(self, seconds: float, confirmed: bool) -> None:
        """Count one wait for disk or replicas."""
        self._waits.observe(seconds)
        if not confirmed:
            self._unconfirmed.inc()

    def replayed(self) -> None:
        """Count one submit that got the first answer of its idempotency key."""
        self._replayed.inc()


class _StoreCollector(Collector):
    def __init__(self, snapshot: StoreSnapshot | None, version: str, claim_ages: Mapping[str, float]) -> None:
        self._snapshot = snapshot
        self._claim_ages = claim_ages
        self._version = version

    def collect(self) -> Iterable[Metric]:
        yield _gauge(BUILD_INFO, [((self._version,), 1)])
        yield _gauge(STORE_UP, [((), 0 if self._snapshot is None else 1)])
        yield _gauge(SINCE_LAST_CLAIM, [((worker,), seconds) for worker, seconds in self._claim_ages.items()])
        snapshot = self._snapshot
        if snapshot is None:
            return
        yield _gauge(STORE_MEMORY, [((), snapshot.memory.used_bytes)])
        yield _gauge(STORE_MEMORY_LIMIT, [((), snapshot.memory.max_bytes)])
        yield _gauge(WORKERS, [((), snapshot.workers)])
        yield _gauge(STUCK_SLOTS, [((), snapshot.stuck_slots)])
        queues = snapshot.queues
        names = {queue.name for queue in queues} | {queue for _, queue in snapshot.counters if queue}
        for name, declared in {**JOB_COUNTERS, **TICK_COUNTERS}.items():
            # Every known queue has every counter from the start: a rate misses the start of one that appears late.
            family = CounterMetricFamily(declared.name, declared.help, labels=declared.labels)
            for queue_name in sorted(names):
                family.add_metric((queue_name,), snapshot.counters.get((name, queue_name), 0))
            yield family
        yield _gauge(
            QUEUE_DEPTH,
            [((queue.name, level.value), queue.depth.get(level, 0)) for queue in queues for level in Priority],
        )
        yield _gauge(QUEUE_PAUSED, [((queue.name,), int(queue.paused)) for queue in queues])
        yield _gauge(JOBS_RUNNING, [((queue.name,), queue.running) for queue in queues])
        yield _gauge(JOBS_DELAYED, [((queue.name,), queue.delayed) for queue in queues])
        yield _gauge(DEAD_LETTERS, [((queue.name,), queue.finished.get(State.FAILED, 0)) for queue in queues])


def _gauge(declared: Declared, samples: Iterable[tuple[Sequence[str], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(declared.name, declared.help, labels=declared.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def render(
    snapshot: StoreSnapshot | None, http: HttpMetrics, *, version: str, claim_ages: Mapping[str, float]
) -> bytes:
    """Return all metrics as Prometheus text; without a snapshot the store is down.

    ``claim_ages`` are the seconds since the last answered claim of each worker, known also while the store is down.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StoreCollector(snapshot, version, claim_ages))
    return generate_latest(registry) + generate_latest(http.registry)
