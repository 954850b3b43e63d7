"""Share leases between two sides of one table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from penstock.core.ids import Token, make_job_id
from penstock.worker.lease_table import LeaseReader, LeaseWriter, create

NONCE = "0123456789abcdef"
Sides = tuple[LeaseWriter, LeaseReader]


@pytest.fixture
def sides() -> Iterator[Sides]:
    descriptor = create(2)
    writer, reader = LeaseWriter(descriptor), LeaseReader(descriptor)
    os.close(descriptor)
    writer.begin(NONCE)
    yield writer, reader
    reader.close()


def token(attempt: int = 1) -> Token:
    return Token(make_job_id(unix_ms=1, home=attempt, random_bits=attempt), attempt, NONCE)


def test_a_lease_is_seen_until_it_is_struck_out(sides: Sides) -> None:
    writer, reader = sides
    entry = writer.put(token(7), 10.0)
    assert reader.unrenewed(11.0) == [token(7)]
    writer.drop(entry)
    assert reader.unrenewed(11.0) == []


def test_only_what_was_neither_taken_nor_renewed_lately_is_due(sides: Sides) -> None:
    writer, reader = sides
    writer.put(token(1), 10.0)
    writer.put(token(2), 20.0)
    assert reader.unrenewed(15.0) == [token(1)]
    writer.mark_round()
    assert reader.unrenewed(15.0) == []
    assert set(reader.unrenewed(time.monotonic() + 1)) == {token(1), token(2)}


def test_a_full_table_takes_no_more_and_entries_are_used_again(sides: Sides) -> None:
    writer, reader = sides
    entries = [writer.put(token(number), 1.0) for number in (1, 2, 3)]
    assert entries[2] == 0
    assert all(entries[:2])
    writer.drop(entries[0])
    assert writer.put(token(4), 1.0) == entries[0]
    assert set(reader.unrenewed(2.0)) == {token(2), token(4)}


def test_a_sign_of_life_comes_before_the_first_job_and_moves_on() -> None:
    descriptor = create(1)
    writer, reader = LeaseWriter(descriptor), LeaseReader(descriptor)
    os.close(descriptor)
    assert reader.beat_s == 0
    writer.begin(NONCE)
    first = reader.beat_s
    assert 0 < first <= time.monotonic()
    writer.beat()
    assert first <= reader.beat_s <= time.monotonic()
    reader.close()
