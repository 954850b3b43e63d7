"""Read what a server says of itself, and tell whether this release can use it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from penstock.core.errors import StoreError

#: Runs one plain command.
Command = Callable[..., Awaitable[Any]]

#: The oldest versions that have what the scripts need (flags of scripts that work when memory is full).
MINIMUM: Mapping[str, tuple[int, int]] = {"Valkey": (7, 2), "Redis": (7, 0)}


async def read_info(command: Command, *section: str) -> dict[str, str]:
    """Return what INFO tells; nothing where it is forbidden."""
    try:
        answer = await command("INFO", *section)
    except (StoreError, AttributeError):
        # The client library trips over an answer that is none of INFO's.
        return {}
    if isinstance(answer, dict):
        return {text_of(name): _line(value) for name, value in answer.items()}
    lines = (line.partition(":") for line in text_of(answer).splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


async def read_setting(command: Command, name: str) -> str | None:
    """Return a server setting; None where CONFIG is forbidden or renamed."""
    try:
        answer = await command("CONFIG", "GET", name)
    except StoreError:
        return None
    return setting_in(answer)


def setting_in(answer: Any) -> str | None:
    """Return the one setting in an answer to CONFIG GET; None where the server has no such setting."""
    values = list(answer.values()) if isinstance(answer, dict) else answer[1:2]
    return text_of(values[0]) if values else None


def product(info: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the server's name and version; None where INFO is forbidden."""
    if "valkey_version" in info:
        return "Valkey", info["valkey_version"]
    return ("Redis", info["redis_version"]) if "redis_version" in info else None


def version_problem(info: Mapping[str, str]) -> str | None:
    """Return what is wrong with the server's version; None when it will do, or is not told."""
    known = product(info)
    if known is None:
        return None
    name, version = known
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    if len(numbers) < 2 or tuple(numbers) >= MINIMUM[name]:
        return None
    return f"{name} {version}; {'.'.join(map(str, MINIMUM[name]))} or later is needed"


def online_replicas(info: Mapping[str, str]) -> int:
    """Return how many replicas follow, by ``INFO replication``."""
    return sum(
        "state=online" in value.split(",")
        for name, value in info.items()
        if re.fullmatch(r"(?:slave|replica)\d+", name)
    )


def text_of(value: Any) -> str:
    """Return a value of an answer as text."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _line(value: Any) -> str:
    # The client library parses "ip=…,state=online" into a mapping.
    if isinstance(value, dict):
        return ",".join(f"{text_of(name)}={text_of(part)}" for name, part in value.items())
    return text_of(value)
