"""Judge from the registry whether a worker consumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from penstock.core.job import WorkerInfo

SILENT_MS = 30_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerHealth:
    """Say whether a worker consumes, and why not."""

    ok: bool
    detail: str

    @classmethod
    def judge(cls, info: WorkerInfo | None) -> WorkerHealth:
        """Judge what a worker announced.

        ``last_claim_at_ms`` holds its last answered claim, empty ones too, or its last answered renewal while all its
        slots are full. Both times are of the store's clock, so the judge's own does not matter. A worker silent for
        60 s is not in the registry.
        """
        if info is None:
            return cls(ok=False, detail="no such worker has announced itself in the last 60 s")
        if info.last_claim_at_ms is None:
            return cls(ok=False, detail=f"{info.name} has not claimed yet")
        silent_ms = info.seen_at_ms - info.last_claim_at_ms
        if silent_ms > SILENT_MS:
            return cls(ok=False, detail=f"{info.name} could not claim for {silent_ms / 1000:.0f} s")
        return cls(ok=True, detail=f"{info.name} claims; {info.running} of {info.concurrency} slots taken")

    @classmethod
    def judge_host(cls, infos: Iterable[WorkerInfo], hostname: str) -> WorkerHealth:
        """Judge all workers of a host: one that does not consume makes it sick, none at all too."""
        judged = [cls.judge(info) for info in infos if info.hostname == hostname]
        if not judged:
            return cls(ok=False, detail=f"no worker of {hostname} has announced itself in the last 60 s")
        return next((health for health in judged if not health.ok), judged[0])
