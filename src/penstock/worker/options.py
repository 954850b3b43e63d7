"""Hold the options of a worker; the environment is read elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from penstock.core.errors import ConfigError
from penstock.core.limits import MIB, Limits, TaskDefaults
from penstock.handlers.ai import AISettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Say what a worker serves and how much at once.

    ``name`` None makes one of host, process id and a random part. ``modules`` are imported for their tasks, ``builtin``
    adds the built-in ones. ``queues`` None serves the default queue and those that the tasks name; ``queue_weights``
    stand for them in turn, where given. ``queue_slots`` says how many slots of each executor a queue may take; where
    it says nothing, one of several queues leaves an eighth to the others; of a queue that is not served it must say
    nothing. ``priorities`` is ``weighted`` (critical
    first, then 16 : 4 : 1, so that the lowest still moves) or ``strict``.
    ``processes`` is how many processes run jobs under the supervisor; each of them claims for itself, with a loop of
    ``concurrency``, ``threads`` and a pool of ``pool_processes`` (0 means as many as cores) of its own. A lease of
    ``lease_ms`` is renewed each third of it. One of the processes that gives no sign of life for ``process_silence_ms``
    is killed. While the store is away, each keeps results of up to ``unwritten_bytes``.
    On SIGTERM running jobs get ``drain_ms`` to finish. ``log_json`` and ``log_level`` are for child
    processes, which set up logging anew.
    """

    name: str | None = None
    queues: tuple[str, ...] | None = None
    queue_weights: tuple[int, ...] | None = None
    queue_slots: tuple[tuple[str, int], ...] = ()
    priorities: str = "weighted"
    modules: tuple[str, ...] = ()
    builtin: bool = True
    concurrency: int = 100
    threads: int = 8
    processes: int = 1
    pool_processes: int = 0
    lease_ms: int = 15_000
    process_silence_ms: int = 60_000
    unwritten_bytes: int = 64 * MIB
    drain_ms: int = 25_000
    announce_ms: int = 10_000
    ai: AISettings = dataclasses.field(default_factory=AISettings)
    limits: Limits = dataclasses.field(default_factory=Limits)
    defaults: TaskDefaults = dataclasses.field(default_factory=TaskDefaults)
    log_json: bool | None = None
    log_level: str = "info"

    def __post_init__(self) -> None:
        if self.queues is not None:
            self.check_queue_slots(self.queues)

    def check_queue_slots(self, served: Sequence[str]) -> None:
        """See that each queue that is given slots is among those served.

        Raises:
            ConfigError: some are not; it names them.
        """
        if strange := [queue for queue, _ in self.queue_slots if queue not in served]:
            named = ", ".join(repr(queue) for queue in strange)
            shown = ", ".join(repr(queue) for queue in served)
            detail = f"{named} {'is' if len(strange) == 1 else 'are'} not among the queues served here: {shown}"
            raise ConfigError("PENSTOCK_QUEUE_SLOTS", f"{detail}; correct --queue-slots or --queues")
