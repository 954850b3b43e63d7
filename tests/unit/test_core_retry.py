from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.retry import DEFAULT_BACKOFF, Backoff


@pytest.mark.parametrize(
    ("counted", "whole_ms"),
    [(0, 1_000), (1, 1_000), (2, 2_000), (3, 4_000), (9, 256_000), (10, 300_000), (10**9, 300_000)],
)
def test_the_wait_doubles_up_to_a_bound(counted: int, whole_ms: int) -> None:
    steady = Backoff(jitter=False)
    assert steady.delay_ms(counted, draw=0.5) == whole_ms
    assert DEFAULT_BACKOFF.delay_ms(counted, draw=0.0) == 0
    assert DEFAULT_BACKOFF.delay_ms(counted, draw=0.5) == whole_ms // 2


@given(
    base_ms=st.integers(0, 10**9),
    factor=st.floats(1.0, 1e6),
    max_ms=st.integers(0, 10**10),
    counted=st.integers(0, 2_000),
    draw=st.floats(0.0, 1.0, exclude_max=True),
)
def test_the_wait_stays_within_its_bounds(base_ms: int, factor: float, max_ms: int, counted: int, draw: float) -> None:
    delay_ms = Backoff(base_ms=base_ms, factor=factor, max_ms=max_ms).delay_ms(counted, draw=draw)
    assert 0 <= delay_ms <= max_ms


def test_a_factor_of_one_waits_evenly() -> None:
    steady = Backoff(base_ms=500, factor=1.0, jitter=False)
    assert {steady.delay_ms(counted, draw=0.0) for counted in range(1, 50)} == {500}
