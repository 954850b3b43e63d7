"""Turn a job's input into the arguments of a function."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from penstock.core.errors import TaskError
from penstock.core.outcome import InvalidInput
from penstock.handlers.context import Context

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")


class Binder:
    """Bind an input to one function: an object by name, any other value to the only parameter.

    Types are those of the annotations, checked strictly: ``"3"`` is no number. A parameter without an annotation takes
    any JSON value. A parameter annotated ``Context``, or named ``ctx`` without annotation, is injected.
    """

    def __init__(self, function: Callable[..., Any], *, where: str) -> None:
        """Read the signature.

        Raises:
            TaskError: the signature holds something that no JSON object can fill.
        """
        try:
            hints = typing.get_type_hints(function, include_extras=True)
            parameters = inspect.signature(function).parameters
        except Exception as error:
            raise TaskError(f"{where}: cannot read the signature: {error}") from error
        self.context_name: str | None = None
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for name, parameter in parameters.items():
            annotation = hints.get(name, Any)
            if _wants_context(name, annotation, annotated=name in hints):
                self.context_name = name
                continue
            if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
                raise TaskError(f"{where}: parameter {name!r} must be an ordinary named one (no *, **, or /)")
            if parameter.default is parameter.empty:
                fields.append((name, annotation))
            else:
                # A default of our own, because msgspec refuses mutable ones that a function may well have.
                fields.append((name, annotation | msgspec.UnsetType if _can_join(annotation) else Any, msgspec.UNSET))
        self.names = tuple(field[0] for field in fields)
        self._required = tuple(field[0] for field in fields if len(field) == 2)
        self._all_required = len(self._required) == len(fields)
        struct = msgspec.defstruct("Input", fields, kw_only=True, forbid_unknown_fields=True, gc=False)
        try:
            self._decoder = msgspec.json.Decoder(struct)
            self._only = msgspec.json.Decoder(hints.get(self.names[0], Any)) if len(self.names) == 1 else None
        except TypeError as error:
            raise TaskError(f"{where}: a parameter's type cannot be read from JSON: {error}") from error

    def bind(self, text: bytes) -> dict[str, Any]:
        """Return the arguments by name.

        Raises:
            InvalidInput: a member is missing, unknown or of the wrong type; names it as ``input.<name>``.
        """
        try:
            if text[:1] == b"{" or text.lstrip()[:1] == b"{":
                values = self._decoder.decode(text)
                if self._all_required:
                    return msgspec.structs.asdict(values)
                return {name: value for name in self.names if (value := getattr(values, name)) is not msgspec.UNSET}
            return self._bind_value(text)
        except msgspec.ValidationError as error:
            raise self._explain(str(error)) from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidInput("input", f"is not readable as JSON: {error}") from None

    def _bind_value(self, text: bytes) -> dict[str, Any]:
        if text.strip() == b"null" and not self._required:
            return {}
        if self._only is None:
            wanted = ", ".join(self.names)
            raise InvalidInput("input", f"expected an object with {wanted}" if wanted else "this task takes no input")
        try:
            return {self.names[0]: self._only.decode(text)}
        except msgspec.ValidationError as error:
            if text.strip() == b"null":
                raise InvalidInput(f"input.{self.names[0]}", "is missing") from None
            explained = _explain(str(error))
            raise InvalidInput(
                f"input.{self.names[0]}{explained.field.removeprefix('input')}", explained.detail
            ) from None

    def _explain(self, message: str) -> InvalidInput:
        explained = _explain(message)
        if explained.detail == "is unknown" and explained.field.count(".") == 1:
            takes = ", ".join(self.names) or "nothing"
            return InvalidInput(explained.field, f"is unknown; the task takes {takes}")
        return explained


class WholeInput:
    """Bind the whole input, whatever it is, to one parameter; for the built-in tasks."""

    def __init__(self, name: str, *, context_name: str | None = None) -> None:
        self.names = (name,)
        self.context_name = context_name

    def bind(self, text: bytes) -> dict[str, Any]:
        """Return the input under the one name.

        Raises:
            InvalidInput: the input is not JSON.
        """
        try:
            return {self.names[0]: msgspec.json.decode(text)}
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidInput("input", f"is not readable as JSON: {error}") from None


def _wants_context(name: str, annotation: Any, *, annotated: bool) -> bool:
    return annotation is Context or (name == "ctx" and not annotated)


def _can_join(annotation: Any) -> bool:
    try:
        return bool(annotation is not Any and annotation | msgspec.UnsetType)
    except TypeError:
        return False


def _explain(message: str) -> InvalidInput:
    match = _PLACE.fullmatch(message)
    what, path = (match["what"], match["path"] or "$") if match else (message, "$")
    field = path.replace("$", "input", 1)
    if missing := _MISSING.fullmatch(what):
        return InvalidInput(f"{field}.{missing[1]}", "is missing")
    if unknown := _UNKNOWN.fullmatch(what):
        return InvalidInput(f"{field}.{unknown[1]}", "is unknown")
    detail = what.replace("`", "").replace(" | UnsetType", "").replace(" | unset", "")
    return InvalidInput(field, detail[:1].lower() + detail[1:])
