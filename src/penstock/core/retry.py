"""Compute how long to wait before the next attempt."""

from __future__ import annotations

import msgspec


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Grow the wait by ``factor`` from ``base_ms`` to at most ``max_ms``; ``jitter`` draws from zero to that wait."""

    base_ms: int = 1_000
    factor: float = 2.0
    max_ms: int = 300_000
    jitter: bool = True

    def delay_ms(self, counted: int, *, draw: float) -> int:
        """Return the wait in ms after the ``counted``-th counted failure (1 is the first).

        ``draw`` is a random number in [0, 1); with full jitter the wait is that share of the whole.
        """
        try:
            whole = min(float(self.max_ms), self.base_ms * self.factor ** max(0, counted - 1))
        except OverflowError:
            whole = float(self.max_ms)
        return int(whole * draw) if self.jitter else int(whole)


DEFAULT_BACKOFF = Backoff()
