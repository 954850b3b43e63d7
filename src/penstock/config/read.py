"""Read the text of a setting's value; a ValueError says what is wrong with it, in words for whoever set it."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from penstock.core.durability import Durability
from penstock.core.durations import parse_duration_ms
from penstock.core.limits import KIB, MIB

_MOST_WEIGHT = 1_000


def text(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be text without control characters")
    return value


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?\d{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def choice(*names: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value.lower()

    return parse


def durability(value: str) -> Durability:
    return Durability(choice(*(durability.value for durability in Durability))(value))


def boolean(value: str) -> bool:
    if value.lower() in {"1", "true", "yes", "on"}:
        return True
    if value.lower() in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("must be true or false")


def names(value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in re.split(r"[,\n]", value) if name.strip()))
    if not names or not all(name.isprintable() and len(name) <= 128 for name in names):
        raise ValueError("must be one or more names of at most 128 characters, with commas between them")
    return names


def queues(value: str) -> tuple[tuple[str, int | None], ...]:
    """Return each queue with its weight, None where it has none; the last ``:`` before digits starts a weight."""
    found: dict[str, int | None] = {}
    for item in names(value):
        match = re.fullmatch(r"(.+):(\d+)", item)
        name, weight = (match[1].strip(), int(match[2])) if match else (item, None)
        if weight is not None and not 1 <= weight <= _MOST_WEIGHT:
            raise ValueError(f"a queue's weight is a whole number from 1 to {_MOST_WEIGHT}, as in 'default:3,mail:1'")
        if found.setdefault(name, weight) != weight:
            raise ValueError(f"the queue {name!r} has two weights")
    return tuple(found.items())


def depths(value: str) -> tuple[tuple[str, int], ...]:
    """Return how many jobs may wait in each queue; 0 is no bound."""
    return _numbers(value, "must be queues with the most jobs that may wait there, as in 'mail:5000,bulk:100000'")


def queue_slots(value: str) -> tuple[tuple[str, int], ...]:
    """Return how many jobs of each queue may run at once."""
    form = "must be queues with the most jobs that may run at once, from 1 to 10000, as in 'reports:20,mail:5'"
    found = _numbers(value, form)
    if not all(1 <= slots <= 10_000 for _, slots in found):
        raise ValueError(form)
    return found


def _numbers(value: str, form: str) -> tuple[tuple[str, int], ...]:
    """Return each queue with its number, of which each needs one. Raises ValueError with the form that is wanted."""
    found: dict[str, int] = {}
    for item in names(value):
        match = re.fullmatch(r"(.+):(\d{1,9})", item)
        if not match or match[1].strip() in found:
            raise ValueError(form)
        found[match[1].strip()] = int(match[2])
    return tuple(found.items())


def keys(value: str) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(key.strip() for key in re.split(r"[,\n]", value) if key.strip()))
    if not keys:
        raise ValueError("holds no key; give one or more, with commas or line ends between them")
    if not all(len(key) >= 16 and key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("each key needs 16 or more printable ASCII characters without spaces")
    return keys


def namespace(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError("must be 1 to 64 of letters, digits, '.', '_' and '-'")
    return value


def power_of_two(value: str) -> int:
    number = integer(1, 4096)(value)
    if number & (number - 1):
        raise ValueError("must be a power of two from 1 to 4096")
    return number


def duration(low_ms: int, high_ms: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        milliseconds = parse_duration_ms(value)
        if not low_ms <= milliseconds <= high_ms:
            raise ValueError(f"must be from {low_ms / 1000:g} to {high_ms / 1000:g} seconds")
        return milliseconds

    return parse


def size(value: str) -> int:
    match = re.fullmatch(r"(\d{1,12})\s*(|b|kib|kb|mib|mb)", value.strip().lower())
    if not match or not int(match[1]):
        raise ValueError("must be a number of bytes, or text such as '512KiB' or '1MiB'")
    return int(match[1]) * {"": 1, "b": 1, "kib": KIB, "kb": KIB, "mib": MIB, "mb": MIB}[match[2]]


def url(*schemes: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in schemes or not (parts.netloc or parts.path):
            raise ValueError(f"must be a URL that starts with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value.rstrip("/")

    return parse


def redis_url(value: str) -> str:
    # Imported late: commands that only speak HTTP need no store.
    from penstock.store.address import parse_address

    parse_address(value)
    return value.rstrip("/")
