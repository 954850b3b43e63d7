"""Describe what a mutant is."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Describe one patch: in ``script`` the text ``old`` becomes ``new``."""

    script: str
    name: str
    old: str
    new: str = ""


def of(script: str, *patches: tuple[str, str] | tuple[str, str, str]) -> list[Mutant]:
    """Return the mutants of a script: name, what is taken out, and what comes in its place."""
    return [Mutant(script, *patch) for patch in patches]
