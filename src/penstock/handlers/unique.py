"""Read what ``@task(unique=…)`` declares, and make the unique key of a submit from its arguments."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Mapping
from typing import Any

from penstock.core.durations import parse_duration_ms
from penstock.core.errors import TaskError
from penstock.core.job import HeldUntil, OnConflict

Key = str | Callable[[dict[str, Any]], str]
_FIELDS = ("for", "key", "on_conflict", "until")


class DeclaredUnique:
    """Make the unique key of one task's submits.

    The key is a template over the arguments (``"report:{customer}"``) or a function of the input. Arguments that a
    submit leaves out count with the defaults of the function.
    """

    def __init__(self, value: Key | Mapping[str, Any], function: Callable[..., Any], *, where: str) -> None:
        """Check it against the function's parameters.

        Raises:
            TaskError: it cannot be used; names the task's place.
        """
        self._where = where
        fields: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"key": value}
        if unknown := set(fields) - set(_FIELDS):
            raise TaskError(f"{where}: unique has no {min(unknown)!r}; it takes {', '.join(_FIELDS)}")
        for name, choices in (("until", HeldUntil), ("on_conflict", OnConflict)):
            allowed = [choice.value for choice in choices]
            if fields.get(name) is not None and fields[name] not in allowed:
                raise TaskError(f"{where}: unique.{name} must be one of {', '.join(allowed)}, not {fields[name]!r}")
        _check_time(fields.get("for"), where)
        self._key: Any = fields.pop("key", None)
        #: What a submit says beside the key, in the words of the HTTP interface.
        self._rest = {name: given for name, given in fields.items() if given is not None}
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: cannot read the signature: {error}") from error
        self._defaults = {
            name: parameter.default
            for name, parameter in parameters.items()
            if parameter.default is not parameter.empty
        }
        if isinstance(self._key, str):
            self._check_template(self._key, tuple(parameters))
        elif not callable(self._key):
            raise TaskError(f"{where}: unique takes a key: a text such as 'report:{{customer}}', or a function")

    def fields(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the field of a submit that holds the key of these arguments.

        Raises:
            TaskError: an argument that the template names is missing, or the function returned no text.
        """
        given = self._defaults | dict(arguments)
        if isinstance(self._key, str):
            try:
                key = self._key.format_map(given)
            except (LookupError, AttributeError, TypeError, ValueError) as error:
                raise TaskError(f"{self._where}: unique: {self._key!r} cannot be filled: {error!r}") from error
        else:
            key = self._key(given)
            if not isinstance(key, str):
                raise TaskError(f"{self._where}: unique: the key must be a text, not {key!r}")
        return {"unique": {"key": key, **self._rest}} if self._rest else {"unique_key": key}

    def _check_template(self, template: str, names: tuple[str, ...]) -> None:
        try:
            used = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        except ValueError as error:
            raise TaskError(f"{self._where}: unique: {template!r}: {error}") from None
        for name in used:
            first = name.partition(".")[0].partition("[")[0]
            if first not in names:
                takes = ", ".join(names) or "nothing"
                raise TaskError(f"{self._where}: unique: {template!r} names {first!r}; the task takes {takes}")


def _check_time(value: float | str | None, where: str) -> None:
    if value is None:
        return
    try:
        duration_ms = parse_duration_ms(value)
    except (ValueError, AttributeError, TypeError) as error:
        raise TaskError(f"{where}: unique.for: {error}") from None
    if duration_ms < 1:
        raise TaskError(f"{where}: unique.for must be at least one millisecond")
