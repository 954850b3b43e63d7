"""Say how many jobs to have at hand beyond those that run."""

from __future__ import annotations

#: As many as end within this time.
AHEAD_S = 0.02
#: And no more than these.
MOST_JOBS = 200
#: Above this length of a run: none.
LONG_RUN_S = 0.05
#: What has waited for longer goes back.
LOOK_S = 0.05
#: Over how long the rate is taken, and after how long without an end it is forgotten.
_WINDOW_S = 0.02
_IDLE_S = 0.1


class Ahead:
    """Follow the rate at which short jobs end: those of the next 20 ms may be claimed ahead, 200 at most.

    A long one among them ends that for a while, because what waits behind it could run elsewhere. Reads no clock.
    """

    def __init__(self) -> None:
        self.jobs = 0
        self._ended = 0
        self._since_s = 0.0

    def note(self, run_s: float, now_s: float) -> None:
        """Note the end of a job that ran for so long."""
        if run_s > LONG_RUN_S or now_s - self._since_s > _IDLE_S:
            self._start(now_s)
            return
        self._ended += 1
        passed_s = now_s - self._since_s
        if passed_s >= _WINDOW_S:
            self.jobs = min(MOST_JOBS, int(self._ended / passed_s * AHEAD_S))
            self._ended, self._since_s = 0, now_s

    def _start(self, now_s: float) -> None:
        self.jobs, self._ended, self._since_s = 0, 0, now_s

    def is_idle(self, now_s: float) -> bool:
        """Tell whether nothing has ended for a while, and then begin anew."""
        if now_s - self._since_s > _IDLE_S:
            self.jobs = 0
            return True
        return False

    def forget(self, now_s: float) -> None:
        """Begin anew: what runs is no longer what ran."""
        self._start(now_s)
