"""Draw figures as small SVG pictures: bars, and lines over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from benchmarks.tables import number

WIDTH = 720
_OURS, _OTHERS, _INK, _FAINT = "#0f766e", "#94a3b8", "#1e293b", "#cbd5e1"
_LINES = ("#0f766e", "#b45309", "#4338ca", "#be123c")
_LEFT, _RIGHT, _TOP, _ROW = 150, 110, 44, 26


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{_INK}">'
        f"{escape(words)}</text>"
    )


def _picture(height: float, title: str, parts: Sequence[str]) -> str:
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
            'font-family="system-ui, sans-serif" font-size="13">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        _text(16, 24, title, weight="bold"),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def bars(title: str, rows: Sequence[tuple[str, float]], *, ours: str = "") -> str:
    """Draw a bar for each value; the row named ``ours`` stands out."""
    most = max((value for _, value in rows), default=1.0) or 1.0
    room = WIDTH - _LEFT - _RIGHT
    parts = []
    for place, (label, value) in enumerate(rows):
        y = _TOP + place * _ROW
        width = max(1.0, value / most * room)
        colour = _OURS if label == ours else _OTHERS
        parts.append(_text(_LEFT - 8, y + 14, label, anchor="end", weight="bold" if label == ours else "normal"))
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="18" rx="2" fill="{colour}"/>')
        parts.append(_text(_LEFT + width + 8, y + 14, number(value)))
    return _picture(_TOP + len(rows) * _ROW + 10, title, parts)


def round_up(value: float) -> float:
    """Return the next number of the form 1, 2, 4, 6 or 8 times a power of ten, for the end of an axis."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw each series as a line: x on a logarithmic axis, y from nought."""
    height, bottom = 320, 270
    points = [point for line in series.values() for point in line]
    low, high = min(math.log10(x) for x, _ in points), max(math.log10(x) for x, _ in points)
    most = round_up(max(y for _, y in points))
    left, room = 80, WIDTH - 80 - 40

    def at(x: float, y: float) -> tuple[float, float]:
        part = (math.log10(x) - low) / (high - low) if high > low else 0.5
        return left + part * room, bottom - y / most * (bottom - _TOP - 10)

    parts = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = at(points[0][0], most * part)[1]
        parts.append(f'<line x1="{left}" x2="{left + room}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_FAINT}"/>')
        parts.append(_text(left - 8, y + 4, number(most * part), anchor="end"))
    parts += [
        _text(at(x, 0)[0], bottom + 20, f"{x:,.0f}", anchor="middle") for x in sorted({point[0] for point in points})
    ]
    for place, (name, line) in enumerate(series.items()):
        colour = _LINES[place % len(_LINES)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (at(*p) for p in line)]
        x = left + place * room / max(1, len(series))
        parts.append(f'<rect x="{x:.1f}" y="{height - 24}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, height - 13, name))
    return _picture(height, title, parts)
