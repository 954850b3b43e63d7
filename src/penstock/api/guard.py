"""Let only those in who may: keys, or without any, this machine's own programs and pages."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from penstock.api.options import ApiOptions, is_loopback
from penstock.api.problems import FOREIGN_ORIGIN, HOST_NOT_ALLOWED, UNAUTHORIZED, ApiError

#: Routes that answer without a key, besides ``/``, which leads to ``/docs``.
OPEN_ROUTES = ("/health", "/docs", "/openapi.json")


def is_open(path: str) -> bool:
    """Tell whether a path answers without a key."""
    return path == "/" or any(path == route or path.startswith(f"{route}/") for route in OPEN_ROUTES)


def host_name(authority: str) -> str:
    """Return the name or address of a ``Host`` value, without port and brackets, in lower case."""
    text = authority.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


class Guard:
    """Check keys, ``Host`` and ``Origin``; only hashes of the keys are kept."""

    def __init__(self, options: ApiOptions) -> None:
        self._hashes = tuple(hashlib.sha256(key.encode()).digest() for key in options.api_keys)
        self._allowed_hosts = frozenset(name.lower() for name in options.allowed_hosts)
        self._loopback_only = options.checks_loopback and (is_loopback(options.host) or not options.insecure)
        self._checks_origin = options.checks_loopback
        #: The last ``Host`` that was let in: most requests come by one name.
        self._known_host: bytes | None = None

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request that may not come in.

        Raises:
            ApiError: no or a wrong key, a foreign host or origin.
        """
        if not path.startswith("/health"):
            # Probes come by address; they tell nobody anything.
            self._check_host(headers)
        if self._checks_origin:
            _check_origin(headers)
        elif not is_open(path):
            self._check_key(headers)

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # No early end: the time must not tell which key came near.
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        if scheme.lower() != b"bearer" or not any(matches):
            detail = "the key is not known" if key else "send the header Authorization: Bearer KEY"
            raise ApiError(UNAUTHORIZED, detail, headers={"WWW-Authenticate": 'Bearer realm="penstock"'})

    def _check_host(self, headers: Mapping[bytes, bytes]) -> None:
        if not self._loopback_only and not self._allowed_hosts:
            return
        host = headers.get(b"host", b"")
        if host == self._known_host:
            return
        name = host_name(host.decode("latin-1"))
        if name in self._allowed_hosts or (self._checks_origin and is_loopback(name)):
            self._known_host = host
            return
        detail = (
            "without keys only loopback names such as localhost are served"
            if self._checks_origin
            else "it is not allowed"
        )
        raise ApiError(HOST_NOT_ALLOWED, f"Host {name[:128]!r}: {detail}")


def _check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what a page of another origin sends; programs send no ``Origin``."""
    origin = headers.get(b"origin")
    if origin is None:
        return
    authority = origin.decode("latin-1").lower().partition("://")[2]
    host = headers.get(b"host", b"").decode("latin-1").strip().lower()
    if not authority or authority != host:
        raise ApiError(FOREIGN_ORIGIN, f"Origin {origin.decode('latin-1')[:128]!r} is not this server's own")
