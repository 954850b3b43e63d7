"""Make and read job ids, partitions and lease tokens.

An id is a UUIDv7 (RFC 9562): 48 bits of Unix time in ms, then ``rand_a`` (12 bits) which is the job's home, then
62 random bits. The home modulo the number of partitions names the partition, so an id needs no look-up.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from binascii import crc_hqx
from collections.abc import Callable, Mapping
from typing import NewType

import msgspec

JobId = NewType("JobId", str)
WorkerName = NewType("WorkerName", str)

HOMES = 4096
_SLOTS = 16384
_TAG_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def make_job_id(*, unix_ms: int, home: int, random_bits: int) -> JobId:
    """Build a UUIDv7 from a time, a home (0 to 4095) and 62 random bits."""
    value = (unix_ms & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (home & 0xFFF) << 64 | 0b10 << 62
    text = f"{value | (random_bits & 0x3FFF_FFFF_FFFF_FFFF):032x}"
    return JobId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


class IdMaker:
    """Make job ids at homes drawn at random; not shared between processes.

    ``random_bytes`` returns so many bytes of good randomness; it is asked for hundreds of ids at once.
    """

    _STOCK = 400
    _BYTES = 10
    #: RFC 9562's variant, with the two random bits that a digit has left.
    _VARIANTS: Mapping[str, str] = {f"{digit:x}": "89ab"[digit & 3] for digit in range(16)}

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._tails: list[str] = []
        self._unix_ms = -1
        self._head = ""

    def __call__(self, unix_ms: int) -> JobId:
        """Return a new id of that Unix time."""
        if unix_ms != self._unix_ms:
            digits = f"{unix_ms & 0xFFFF_FFFF_FFFF:012x}"
            self._unix_ms, self._head = unix_ms, f"{digits[:8]}-{digits[8:]}-7"
        if not self._tails:
            self._tails = self._make_tails()
        return JobId(self._head + self._tails.pop())

    def _make_tails(self) -> list[str]:
        """Return what follows the time and the version: the home, the variant and the rest."""
        digits = self._random_bytes(self._BYTES * self._STOCK).hex()
        variants = self._VARIANTS
        return [
            f"{digits[at : at + 3]}-{variants[digits[at + 3]]}{digits[at + 4 : at + 7]}-{digits[at + 7 : at + 19]}"
            for at in range(0, len(digits), self._BYTES * 2)
        ]


def parse_job_id(text: str) -> JobId | None:
    """Return the id if ``text`` is a UUIDv7 in its canonical lower-case form."""
    return JobId(text) if _UUID7.fullmatch(text) else None


def created_ms(job_id: JobId) -> int:
    """Return the Unix time in ms that an id carries (the submitter's clock, not the server's)."""
    return int(job_id[:8] + job_id[9:13], 16)


def home_of(job_id: JobId) -> int:
    """Return an id's home, 0 to 4095."""
    return int(job_id[15:18], 16)


def partition_of(job_id: JobId, partitions: int) -> int:
    """Return the partition that an id lives in; ``partitions`` is a power of two up to 4096."""
    return home_of(job_id) % partitions


def digest_of(key: str) -> str:
    """Return what stands for a user's key in the store: 32 hexadecimal digits; the first three are its home."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def home_of_digest(digest: str) -> int:
    """Return the home, 0 to 4095, of a key's digest."""
    return int(digest[:3], 16)


def at_home(job_id: JobId, home: int) -> JobId:
    """Return the id moved to another home."""
    return JobId(f"{job_id[:15]}{home & 0xFFF:03x}{job_id[18:]}")


@functools.cache
def _tags() -> tuple[str, ...]:
    """Find for each of 4096 equal ranges of hash slots the first short string that falls into it.

    The order of the search is fixed, so the table is the same everywhere; a test pins its digest.
    """
    width = _SLOTS // HOMES
    found: dict[int, str] = {}
    for length in itertools.count(1):
        for characters in itertools.product(_TAG_CHARACTERS, repeat=length):
            tag = "".join(characters)
            # Redis' CRC16 is the XMODEM variant, which binascii computes in C.
            found.setdefault(crc_hqx(tag.encode(), 0) % _SLOTS // width, tag)
            if len(found) == HOMES:
                return tuple(found[index] for index in range(HOMES))
    raise AssertionError("unreachable")


def partition_tag(partition: int, partitions: int) -> str:
    """Return the hash tag of a partition; tags of all partitions spread evenly over a cluster's slots."""
    return _tags()[partition * (HOMES // partitions)]


class Token(msgspec.Struct, frozen=True, gc=False):
    """Prove the right to one attempt of one job.

    ``attempt`` rises with each claim and is never used twice; ``nonce`` is the claimer's secret.
    """

    job_id: JobId
    attempt: int
    nonce: str

    def __repr__(self) -> str:
        """Keep the nonce out of logs and tracebacks."""
        return f"Token(job_id={self.job_id!r}, attempt={self.attempt!r})"

    def __str__(self) -> str:
        return f"{self.job_id}.{self.attempt}.{self.nonce}"

    @property
    def lease_id(self) -> str:
        """Return the part that may be logged."""
        return f"{self.job_id}.{self.attempt}"
