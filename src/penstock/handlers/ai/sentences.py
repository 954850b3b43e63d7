"""Find the sentences of a text as spans of it, in time that grows no faster than the text.

No pattern here can backtrack over more than a few characters; what stands around a full stop is looked at by plain code
with a bounded reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_SENTENCE_CHARS = 1_000
"""A longer stretch without a full stop is cut at white space: a line of 1 MiB would be one sentence otherwise."""

_SPACED_ENDS = ".!?\u2026"
_BARE_ENDS = "\u3002\uff01\uff1f\uff61\uff0e\u0964\u0965\u061f\u06d4\u0589\u1362\u1367\u104b\u17d4\u0f0d"
_CLOSERS = "\"')]}*_`\u2019\u201d\u00bb\u203a\u300d\u300f\uff09\u3011\u300b"
_END = re.compile(f"[{re.escape(_SPACED_ENDS + _BARE_ENDS)}]+[{re.escape(_CLOSERS)}]*")
_BLANK = re.compile(r"\s*")
_MARKER = re.compile(r"[ \t]{0,40}(?:[-*+\u2022\u2013>][ \t]|\(?(?:[0-9]{1,3}|[a-zA-Z]|[ivxIVX]{2,4})[.)][ \t])")
_ALONE = re.compile(r"[ \t]{0,3}(?:#|\||```|~~~|===|---)")
_ENDING = tuple(_SPACED_ENDS + _BARE_ENDS)

_TITLES = "mr mrs ms dr prof st vs e.g i.e eg ie cf bzw ca z.b d.h u.a"
_COUNTED = "fig no nos nr vol pp sec art abs ch"
_ENDINGS = "etc inc ltd co corp jr sr al approx dept est usw u.s u.k a.m p.m"
_NEVER_LAST = frozenset(_TITLES.split())
_BEFORE_NUMBER = frozenset(_COUNTED.split())
_SELDOM_LAST = frozenset(_ENDINGS.split())
_LONGEST_ABBREVIATION = 12


class Span(NamedTuple):
    """Name one sentence by where it stands: `text[start:end]`."""

    start: int
    end: int


def sentence_spans(text: str) -> Iterator[Span]:
    """Yield the sentences of `text` in order, each trimmed, none empty, none longer than `MAX_SENTENCE_CHARS`."""
    for block in _blocks(text):
        ended = _END.search(text, block.start, block.end) is not None
        for part in _split(text, block) if ended else _lines(text, block):
            yield from _pieces(text, part)


def ends_like_prose(text: str, span: Span) -> bool:
    """Tell whether the sentence closes with a full stop of some script, as headings and code do not."""
    return text[max(span.start, span.end - 8) : span.end].rstrip(_CLOSERS).endswith(_ENDING)


def _lines(text: str, block: Span) -> Iterator[Span]:
    start = block.start
    for line in text[block.start : block.end].splitlines(keepends=True):
        yield Span(start, start + len(line))
        start += len(line)


def _blocks(text: str) -> Iterator[Span]:
    """Yield paragraphs: they end at an empty line and before a list item; a heading or a table row stands alone."""
    start = end = 0
    for line in _lines(text, Span(0, len(text))):
        alone = _ALONE.match(text, line.start, line.end) is not None
        empty = not alone and not text[line.start : line.end].strip()
        if empty or alone or _MARKER.match(text, line.start, line.end):
            if start < end:
                yield Span(start, end)
            start = line.start
        if alone:
            yield line
        if alone or empty:
            start = line.end
        end = line.end
    if start < end:
        yield Span(start, end)


def _split(text: str, block: Span) -> Iterator[Span]:
    start = block.start
    for mark in _END.finditer(text, block.start, block.end):
        if _is_end(text, start, mark):
            yield Span(start, mark.end())
            start = mark.end()
    if start < block.end:
        yield Span(start, block.end)


def _is_end(text: str, start: int, mark: re.Match[str]) -> bool:
    if any(character in _BARE_ENDS for character in mark.group()[:2]):
        return True
    following = text[mark.end() : mark.end() + 1]
    if following and not following.isspace():
        return False
    gap = _BLANK.match(text, mark.end())
    following = text[gap.end() : gap.end() + 1] if gap else ""
    if not following:
        return True
    if following.islower():
        return False
    if not mark.group().startswith(".") or mark.group().startswith(".."):
        return True
    reach = text[max(start, mark.start() - _LONGEST_ABBREVIATION) : mark.start()]
    word = reach.split()[-1].lstrip("([\"'\u201c\u2018").casefold() if reach and not reach[-1].isspace() else ""
    if word in _NEVER_LAST or (len(word) == 1 and word.isalpha() and word != "i"):
        return False
    if word in _BEFORE_NUMBER:
        return not following.isdigit()
    if word in _SELDOM_LAST:
        return following.isupper()
    # "1. Introduction": a number that opens the sentence counts a list. Bounded, for a text of nothing but "1. 1. 1.".
    opening = text[start : mark.start()].strip() if mark.start() - start <= 2 * _LONGEST_ABBREVIATION else ""
    return not (word.isdigit() and opening == word)


def _pieces(text: str, span: Span) -> Iterator[Span]:
    start, end = span
    while start < end:
        gap = _BLANK.match(text, start, end)
        start = gap.end() if gap else start
        if end - start <= MAX_SENTENCE_CHARS:
            break
        limit = start + MAX_SENTENCE_CHARS
        window = text[start:limit]
        cut = max(window.rfind("\n"), window.rfind(" "), 0) or MAX_SENTENCE_CHARS
        yield Span(start, start + len(window[:cut].rstrip()))
        start += cut
    last = text[start:end].rstrip()
    if last:
        yield Span(start, start + len(last))
