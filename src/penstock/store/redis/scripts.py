"""Load the Lua scripts, check their contract headers and refuse a call that does not fit one.

A script file opens with a header: ``-- <verb>: <sentence>``, then ``Guarantee``, ``KEYS``, ``ARGV``, ``Returns``,
``Transitions``, ``Flags`` and ``Uses`` (files of ``lib/`` to put before it). The text sent to the server is the
shebang, the key builders of ``keys.py``, the functions of signals, the used libraries and the script.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from importlib import resources

from penstock.store.keys import lua_prelude

#: A list that somebody may wait for. Its name is published as well: on a cluster nobody can block on lists of several
#: slots (``signals.py``). Who may not publish there wakes them by the sweep.
SIGNAL = """-- A key of another type would wake nobody, and stop scripts that have written: it goes.
local function push_signal(key, value)
  if type(redis.pcall('RPUSH', key, value)) == 'table' then
    redis.call('DEL', key)
    redis.call('RPUSH', key, value)
  end
  redis.pcall('SPUBLISH', key, '')
end
local function is_silent(key)
  local length = redis.pcall('LLEN', key)
  if type(length) == 'table' then
    redis.call('DEL', key)
    return true
  end
  return length == 0
end"""
_FIELDS = ("Guarantee", "KEYS", "ARGV", "Returns", "Transitions", "Flags", "Uses")
_HEADER_KEYS = "meta (hash), canary (none)"


class ScriptError(Exception):
    """Say that a script file breaks its contract; the process must not start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """Hold one script ready to be called."""

    name: str
    text: str
    sha: str
    arguments: int
    transitions: tuple[tuple[str | None, str, str], ...]


def _header(name: str, source: str) -> dict[str, str]:
    lines = []
    for line in source.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line[2:])
    if not lines or not lines[0].startswith(f" {name}: "):
        raise ScriptError(f"{name}.lua: the first line must be '-- {name}: <what it does>'")
    fields: dict[str, str] = {}
    current = ""
    for line in lines[1:]:
        match = re.match(r" (\w+): (.*)", line)
        if match:
            current = match[1]
            fields[current] = match[2].strip()
        else:
            fields[current] += " " + line.strip()
    if tuple(fields) != _FIELDS:
        raise ScriptError(f"{name}.lua: the header needs {', '.join(_FIELDS)} in this order")
    if fields["KEYS"] != _HEADER_KEYS:
        raise ScriptError(f"{name}.lua: KEYS must be '{_HEADER_KEYS}'")
    return fields


def _transitions(name: str, text: str) -> tuple[tuple[str | None, str, str], ...]:
    if text == "none":
        return ()
    found = []
    for item in text.split(", "):
        match = re.fullmatch(r"(\w+) -(\w+)-> (\w+)", item)
        if not match:
            raise ScriptError(f"{name}.lua: a transition reads 'queued -claim-> running', not {item!r}")
        found.append((None if match[1] == "none" else match[1], match[2], match[3]))
    return tuple(found)


def _argument_names(text: str) -> list[str]:
    return re.sub(r"\([^()]*\)", "", text).split(",")


def load_scripts(*, replaced_libraries: Mapping[str, str] | None = None) -> dict[str, Script]:
    """Read all scripts.

    ``replaced_libraries`` puts another text in place of a file of ``lib/`` (tests drive the clock so).

    Raises:
        ScriptError: a header is wrong or names a missing library.
    """
    folder = resources.files("penstock.store") / "lua"
    libraries = {item.name[:-4]: item.read_text() for item in (folder / "lib").iterdir() if item.name.endswith(".lua")}
    libraries.update(replaced_libraries or {})
    scripts = {}
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not item.name.endswith(".lua"):
            continue
        name, source = item.name[:-4], item.read_text()
        header = _header(name, source)
        flags = header["Flags"].split(" ", 1)[0]
        shebang = "#!lua" if flags == "none" else f"#!lua flags={flags}"
        try:
            used = [libraries[library.strip()] for library in header["Uses"].split(",")]
        except KeyError as missing:
            raise ScriptError(f"{name}.lua: no library {missing}") from None
        body = [SIGNAL, *used, source]
        # Only the keys that the script names: each builder is made anew at every call.
        named = set(re.findall(r"\bK\.(\w+)", "\n".join(body)))
        text = "\n".join([shebang, lua_prelude(named), *body])
        scripts[name] = Script(
            name=name,
            text=text,
            sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
            arguments=len(_argument_names(header["ARGV"])),
            transitions=_transitions(name, header["Transitions"]),
        )
    return scripts
