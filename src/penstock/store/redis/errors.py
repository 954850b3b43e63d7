"""Map every error of the client library to one of ours, and tell what it says about the server."""

from __future__ import annotations

import re

import redis.exceptions

from penstock.core.errors import StoreError, StoreFull, StoreUnavailable

#: Codes of error answers that mean "not now": a restart, a failover, a full disk, a migrating slot.
_PASSING = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOREPLICAS",
        "READONLY",
        "TRYAGAIN",
        "UNBLOCKED",
    }
)
_PASSING_ERRORS = (
    redis.exceptions.AskError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
)
#: Codes after which to look anew for who serves what.
_ELSEWHERE = frozenset(
    # NOREPLICAS: its replicas may follow another one, while it holds itself for the primary still.
    {"ASK", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "NOREPLICAS", "READONLY", "TRYAGAIN", "UNBLOCKED"}
)
_CREDENTIALS = frozenset({"NOAUTH", "NOPERM", "WRONGPASS"})
#: The client library cuts the codes that it knows off the text; in a pipeline it puts words of its own before the text.
_CODE = re.compile(r"(?:^|caused error: \(?['\"]?)([A-Z]{2,}) ")
#: What a call can raise. AttributeError: a connection that is closed under a call.
CLIENT_ERRORS = (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError, TimeoutError)


def code_of(error: Exception) -> str:
    """Return the code that an error answer begins with, empty where there is none."""
    known = getattr(error, "status_code", None)
    if known:
        return str(known)
    match = _CODE.search(str(error))
    return match[1] if match else ""


def casts_doubt(error: Exception) -> bool:
    """Tell whether an error may mean that another server serves by now."""
    if isinstance(error, redis.exceptions.ResponseError):
        return code_of(error) in _ELSEWHERE or isinstance(error, _PASSING_ERRORS)
    return True


def map_error(error: Exception) -> StoreError:
    """Return our error for one of the client library's."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    code = code_of(error)
    if code == "OOM" or isinstance(error, redis.exceptions.OutOfMemoryError):
        return StoreFull("the store is at its memory limit and takes no new jobs")
    if code in _CREDENTIALS or isinstance(
        error, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError
    ):
        return StoreUnavailable(f"the store refused the credentials ({text})")
    if code in _PASSING or isinstance(error, _PASSING_ERRORS):
        return StoreUnavailable(f"the store says to come back later ({text})")
    if isinstance(error, redis.exceptions.ResponseError | redis.exceptions.DataError):
        return StoreError(f"the store refused the call ({text})")
    return StoreUnavailable(f"the store gave no answer ({text})")
