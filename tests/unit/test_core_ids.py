from __future__ import annotations

import hashlib
import itertools
import os
import uuid
from binascii import crc_hqx

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.ids import (
    HOMES,
    IdMaker,
    JobId,
    Token,
    created_ms,
    home_of,
    make_job_id,
    parse_job_id,
    partition_of,
    partition_tag,
)

PARTITIONS = [2**power for power in range(13)]
#: Data written under one table cannot be read under another.
TAGS_DIGEST = "b9aeecfe669ed22409e0d95fa953d37ffd0d977a1c55e7de29766ffac86ac43b"


@given(unix_ms=st.integers(0, 2**48 - 1), home=st.integers(0, HOMES - 1), bits=st.integers(0, 2**62 - 1))
def test_an_id_is_a_uuid_7_that_carries_its_parts(unix_ms: int, home: int, bits: int) -> None:
    job_id = make_job_id(unix_ms=unix_ms, home=home, random_bits=bits)
    parsed = uuid.UUID(job_id)
    assert str(parsed) == job_id
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert created_ms(job_id) == unix_ms
    assert home_of(job_id) == home
    assert parsed.int & (2**62 - 1) == bits
    assert parse_job_id(job_id) == job_id


def test_ids_that_are_made_spread_over_homes_and_differ() -> None:
    asked = itertools.count()

    def random_bytes(count: int) -> bytes:
        next(asked)
        return os.urandom(count)

    maker = IdMaker(random_bytes)
    ids = [maker(1_800_000_000_000 + number // 100) for number in range(10_000)]
    assert len(set(ids)) == 10_000
    assert all(parse_job_id(job_id) == job_id for job_id in ids)
    assert [created_ms(job_id) for job_id in ids] == [1_800_000_000_000 + number // 100 for number in range(10_000)]
    assert len({home_of(job_id) for job_id in ids}) > 3_500
    # Every digit that may be random takes all its values.
    places = [{job_id[place] for job_id in ids} for place in (*range(15, 18), *range(20, 23), *range(24, 36))]
    assert all(len(values) == 16 for values in places)
    assert {job_id[19] for job_id in ids} == set("89ab")
    assert next(asked) < 30


def test_what_is_random_in_an_id_is_what_was_drawn() -> None:
    def all_zeros(count: int) -> bytes:
        return b"\x00" * count

    def all_ones(count: int) -> bytes:
        return b"\xff" * count

    assert IdMaker(all_zeros)(0) == make_job_id(unix_ms=0, home=0, random_bits=0)
    assert IdMaker(all_ones)(0) == make_job_id(unix_ms=0, home=HOMES - 1, random_bits=2**62 - 1)


def test_ids_sort_by_time_then_home() -> None:
    parts = [(1, 0, 5), (1, 1, 0), (2, 0, 0), (2**40, 0, 0)]
    ids = [make_job_id(unix_ms=ms, home=home, random_bits=bits) for ms, home, bits in parts]
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "01a3185c-5001-7000-8000-00000000000",
        "01a3185c-5001-7000-8000-0000000000011",
        "01A3185C-5001-7000-8000-000000000001",
        "01a3185c-5001-4000-8000-000000000001",
        "01a3185c-5001-7000-c000-000000000001",
        "01a3185c500170008000000000000001",
        " 01a3185c-5001-7000-8000-000000000001",
        "01a3185c-5001-7000-8000-000000000001\n",
        "01a3185c-5001-7000-8000-00000000000٣",
        "{01a3185c-5001-7000-8000-000000000001}",
    ],
)
def test_anything_else_is_no_id(text: str) -> None:
    assert parse_job_id(text) is None


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_homes_spread_evenly_over_partitions(partitions: int) -> None:
    ids = [make_job_id(unix_ms=0, home=home, random_bits=0) for home in range(HOMES)]
    found = [partition_of(job_id, partitions) for job_id in ids]
    assert {found.count(partition) for partition in range(min(partitions, 8))} == {HOMES // partitions}
    assert max(found) == partitions - 1


def test_the_table_of_tags_is_the_one_that_data_was_written_with() -> None:
    tags = [partition_tag(partition, HOMES) for partition in range(HOMES)]
    assert len(set(tags)) == HOMES
    assert max(map(len, tags)) <= 4
    assert hashlib.sha256(",".join(tags).encode()).hexdigest() == TAGS_DIGEST


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_tags_spread_evenly_over_the_slots_of_a_cluster(partitions: int) -> None:
    slots = [crc_hqx(partition_tag(number, partitions).encode(), 0) % 16_384 for number in range(partitions)]
    width = 16_384 // partitions
    assert [slot // width for slot in slots] == list(range(partitions))


def test_a_token_hides_its_secret_unless_asked() -> None:
    token = Token(JobId("id"), 3, "secret")
    assert "secret" not in repr(token)
    assert "secret" not in token.lease_id
    assert str(token) == "id.3.secret"
    assert token.lease_id == "id.3"
    assert token == Token(JobId("id"), 3, "secret")
    assert token != Token(JobId("id"), 3, "other")
