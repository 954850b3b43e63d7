"""Decode JSON bodies strictly, and explain everything that is wrong with one at once."""

from __future__ import annotations

import difflib
import enum
import json
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Generic, TypeVar, get_args

import msgspec

from penstock.api.problems import NOT_JSON, ApiError, field_error, invalid
from penstock.core.errors import FieldError
from penstock.core.limits import NESTING_LEVELS

T = TypeVar("T", bound=msgspec.Struct)

_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}:]', re.DOTALL)
_MESSAGE = re.compile(r"(?P<text>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
#: How many wrong items of a list are named; a body may hold half a million.
_NAMED_ITEMS = 100
_TYPE_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "object": "an object",
    "array": "an array",
}


def nesting(text: bytes) -> int:
    """Return how deep arrays and objects nest; all work is done by C loops, linear in the text's length."""
    outside = b"".join(text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = memoryview(outside.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    return max(accumulate(steps, initial=0))


def check_nesting(text: bytes) -> None:
    """Refuse JSON text that nests too deep; names the field of the top level that does.

    Raises:
        ApiError: more than 100 levels.
    """
    # Few texts are so long or have so many brackets at all, and counting them is the cheapest of checks.
    if (
        len(text) <= NESTING_LEVELS
        or text.count(b"[") + text.count(b"{") <= NESTING_LEVELS
        or nesting(text) <= NESTING_LEVELS
    ):
        return
    raise too_deep(_deep_field(text))


def too_deep(field: str) -> ApiError:
    """Return the problem of a field that nests too deep."""
    return invalid(field_error(field, "too_deep", f"nests in more than {NESTING_LEVELS} levels"))


def _deep_field(text: bytes) -> str:
    depth = 0
    key = last = b""
    for match in _TOKENS.finditer(text):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
            if depth > NESTING_LEVELS:
                break
        elif token in (b"]", b"}"):
            depth -= 1
        elif token == b":":
            key = last if depth == 1 else key
        else:
            last = token
    return key.strip(b'"').decode("utf-8", "replace")[:128]


class BodyDecoder(Generic[T]):
    """Decode one type of body.

    ``hints`` maps names that other systems use to ours, ``later`` holds names that a later release will take.
    """

    def __init__(
        self, body_type: type[T], *, hints: Mapping[str, str] | None = None, later: frozenset[str] = frozenset()
    ) -> None:
        self._type = body_type
        self._decoder = msgspec.json.Decoder(body_type)
        self._fields = {field.encode_name: field for field in msgspec.structs.fields(body_type)}
        self._field_decoders = {name: msgspec.json.Decoder(field.type) for name, field in self._fields.items()}
        nested = {name: _struct_of(field.type) for name, field in self._fields.items()}
        self._nested = {name: BodyDecoder(kind) for name, kind in nested.items() if kind is not None}
        self._lists = frozenset(name for name, field in self._fields.items() if _is_list_of_texts(field.type))
        self._members = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._hints = dict(hints or {})
        self._later = later

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the fields."""
        return tuple(self._fields)

    def decode(self, text: bytes | msgspec.Raw) -> tuple[T, list[FieldError]]:
        """Return the body and what is wrong with it; a wrong field stands with its default in the body.

        Raises:
            ApiError: not JSON, not an object, or nested too deep.
        """
        try:
            return self._decoder.decode(text), []
        except msgspec.ValidationError:
            return self._explain(bytes(text))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(bytes(text), error) from None

    def _explain(self, text: bytes) -> tuple[T, list[FieldError]]:
        try:
            members = self._members.decode(text)
        except msgspec.ValidationError as error:
            raise invalid(validation_error("", error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(text, error) from None
        errors: list[FieldError] = []
        values: dict[str, Any] = {}
        for name, raw in members.items():
            if name not in self._fields:
                errors.append(self.unknown(name))
                continue
            try:
                values[self._fields[name].name] = self._field_decoders[name].decode(raw)
            except msgspec.ValidationError as error:
                inner = self._right_members(name, raw) or self._right_texts(name, raw)
                if inner is None:
                    errors.append(validation_error(name, error, _choices(self._fields[name].type)))
                else:
                    # What is right in it stays, so that its values are checked too.
                    values[self._fields[name].name], wrong = inner
                    errors += [field_error(f"{name}.{one.field}", one.code, one.detail) for one in wrong]
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise not_json(text, error) from None
        for name, field in self._fields.items():
            if field.required and field.name not in values:
                if name not in members:
                    errors.append(field_error(name, "required", "is missing"))
                # Only names are required; this one passes every check, so that it adds no second error.
                values[field.name] = "-"
        return self._type(**values), errors

    def _right_members(self, name: str, raw: msgspec.Raw) -> tuple[msgspec.Struct, list[FieldError]] | None:
        """Return what is right in a field's object and all that is wrong in it; None when it is no object."""
        nested = self._nested.get(name)
        return nested.decode(raw) if nested is not None and bytes(raw).lstrip()[:1] == b"{" else None

    def _right_texts(self, name: str, raw: msgspec.Raw) -> tuple[tuple[str, ...], list[FieldError]] | None:
        """Return a list of texts and what in it is none, of which many are named; None when it is no such list.

        In the place of what is none stands a text that passes every check of a name.
        """
        if name not in self._lists or bytes(raw).lstrip()[:1] != b"[":
            return None
        texts: list[str] = []
        errors: list[FieldError] = []
        try:
            for index, item in enumerate(_ITEMS.decode(raw)):
                try:
                    texts.append(_TEXT.decode(item))
                except msgspec.ValidationError as error:
                    texts.append("-")
                    if len(errors) < _NAMED_ITEMS:
                        errors.append(validation_error(f"{index}", error))
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Behind the first wrong item stands what is no JSON at all.
            return None
        return tuple(texts), errors

    def unknown(self, name: str) -> FieldError:
        """Say that a field is not known, and which one may be meant."""
        shown = name[:128]
        if name in self._later:
            return field_error(shown, "not_supported", "is not supported yet")
        right = self._hints.get(name)
        if right is None:
            near = difflib.get_close_matches(shown, self._fields, n=1, cutoff=0.75)
            right = f"'{near[0]}'" if near else None
        return field_error(shown, "unknown_field", f"unknown field; use {right}" if right else "unknown field")


def not_json(text: bytes, error: Exception) -> ApiError:
    """Say why a text is not JSON; NaN and Infinity, which some libraries write, name their field."""
    if isinstance(error, RecursionError):
        return too_deep(_deep_field(text))
    if isinstance(error, UnicodeDecodeError):
        return ApiError(NOT_JSON, f"not UTF-8: {error.reason} at byte {error.start}")
    found = list(_not_finite(text))
    if found:
        return invalid(*found)
    return ApiError(NOT_JSON, f"{error}" if text.strip() else "the body is empty")


class _NotFinite:
    """Stand where a text says NaN or Infinity."""

    def __init__(self, word: str) -> None:
        self.word = word


def _not_finite(text: bytes) -> Iterator[FieldError]:
    if b"NaN" not in text and b"Infinity" not in text:
        return
    try:
        value = json.loads(text, parse_constant=_NotFinite)
    except (ValueError, RecursionError):
        return
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _NotFinite):
            yield field_error(path, "not_finite", f"{value.word} is not a JSON number")
            return
        if isinstance(value, dict):
            waiting.extend((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
        elif isinstance(value, list):
            waiting.extend((f"{path}.{index}" if path else str(index), item) for index, item in enumerate(value))


def _choices(kind: Any) -> str:
    """Return the values of an enum's type, for people."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(str(member.value) for member in kind)
    return next((found for inner in get_args(kind) if (found := _choices(inner))), "")


def _is_list_of_texts(kind: Any) -> bool:
    """Tell whether a field takes a list of texts, alone or among others."""
    return kind == tuple[str, ...] or any(_is_list_of_texts(inner) for inner in get_args(kind))


def _struct_of(kind: Any) -> type[msgspec.Struct] | None:
    """Return the type of object that a field takes, alone or among others."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for inner in get_args(kind) if (found := _struct_of(inner)) is not None), None)


def validation_error(field: str, error: msgspec.ValidationError, choices: str = "") -> FieldError:
    """Turn msgspec's words into a wrong field; ``choices`` lists what an enum takes."""
    match = _MESSAGE.fullmatch(str(error))
    assert match is not None
    message, path = match["text"], match["path"] or ""
    steps = [name or index for name, index in _PATH_STEP.findall(path) if index != "..."]
    where = ".".join([field, *steps] if field else steps)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL)
    if unknown:
        return field_error(f"{where}.{unknown[1]}".lstrip(".")[:256], "unknown_field", "unknown field")
    wrong = re.fullmatch(r"Expected `([^`]*)`, got `([^`]*)`", message)
    if wrong:
        expected = " or ".join(_TYPE_NAMES.get(part.strip(), part.strip()) for part in wrong[1].split("|"))
        return field_error(where, "wrong_type", f"expected {expected}, got {_TYPE_NAMES.get(wrong[2], wrong[2])}")
    if message.startswith("Invalid enum value"):
        return field_error(where, "not_allowed", f"must be one of {choices}" if choices else message)
    if "out of range" in message:
        return field_error(where, "out_of_range", f"{message}: a worker could not read it")
    return field_error(where, "wrong_type", message)
