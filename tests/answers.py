"""Read what stores answer for several jobs."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.core.job import Changed


def without_errors(answers: Sequence[Changed | Exception]) -> list[Changed]:
    """Return the answers of a cancel, a redrive or a delete; raise the first error that stands in the place of one."""
    found = []
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        found.append(answer)
    return found
