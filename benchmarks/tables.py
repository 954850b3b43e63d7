"""Write figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.records import Figure, Report

_WHOLE = 100


def number(value: float) -> str:
    """Write a number with the digits that count: thousands whole, small ones with three."""
    if abs(value) >= _WHOLE or value == 0:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def value_of(figure: Figure) -> str:
    """Write a figure's median, or that it is void."""
    return "**void**" if figure.void else number(figure.median)


def spread_of(figure: Figure) -> str:
    return "" if figure.void else f"{number(figure.least)} – {number(figure.most)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Write a table; all but the first ``left`` columns are set to the right."""
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join("---" if column < left else "--:" for column in range(len(head))) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def figures(found: Sequence[Figure], *, head: str = "", more: Sequence[str] = ()) -> str:
    """Write figures of one unit: median, spread, some of their further values, and settings where these differ."""
    unit = found[0].unit if found else ""
    differ = len({figure.settings for figure in found}) > 1
    rows = []
    for figure in found:
        extra = [_further(figure, name) for name in more]
        rows.append([figure.name, value_of(figure), spread_of(figure), *extra, *([figure.settings] if differ else [])])
    return table([head, f"median, {unit}", "least – most", *more, *(["settings"] if differ else [])], rows)


def _further(figure: Figure, name: str) -> str:
    value = None if figure.void else figure.median_of(name)
    return "" if value is None else number(value)


def report(found: Report) -> str:
    """Write all figures of a run, section by section."""
    parts = []
    for section in dict.fromkeys(figure.section for figure in found.figures):
        chosen = found.of(section)
        for unit in dict.fromkeys(figure.unit for figure in chosen):
            same = [figure for figure in chosen if figure.unit == unit]
            names = list(dict.fromkeys(name for figure in same for name in figure.more))
            parts.append(figures(same, head=section, more=names))
    parts += [f"VOID: {figure.key}: {figure.void}" for figure in found.void]
    return "\n\n".join(parts)
