"""Measure nesting as a plain reader of JSON does."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.problems import ApiError
from penstock.api.strict import check_nesting, nesting

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(st.sampled_from('[]{}"\\a')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('[]{}"\\b')), inner),
)


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max((depth(item) for item in value), default=0)
    if isinstance(value, dict):
        return 1 + max((depth(item) for item in value.values()), default=0)
    return 0


@given(VALUES)
def test_nesting_agrees_with_a_reader(value: Any) -> None:
    assert nesting(json.dumps(value).encode()) == depth(value)
    assert nesting(json.dumps(value, ensure_ascii=False, indent=1).encode()) == depth(value)


@given(st.binary())
def test_any_bytes_are_measured(text: bytes) -> None:
    assert nesting(text) >= 0


@pytest.mark.parametrize(
    "text", [b"[]" * 2**19, b'"a",' * 2**18, b'"' * 2**20, b"\\" * 2**20, b"[" * 100 + b"]" * 2**20]
)
def test_a_mebibyte_is_measured_fast(text: bytes) -> None:
    started = time.process_time()
    check_nesting(text)
    assert time.process_time() - started < 1


def test_the_field_is_named_even_in_what_is_not_json() -> None:
    with pytest.raises(ApiError) as raised:
        check_nesting(b'{"first": {"x": 1}, "second": [' + b'{"third":' * 200)
    assert raised.value.errors[0].field == "second"
