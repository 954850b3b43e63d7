"""Read the address of a server, a cluster or a set of sentinels; pure, and the only place that takes one apart."""

from __future__ import annotations

import dataclasses
import enum
from urllib.parse import parse_qsl, quote, unquote, urlencode

_PORT = 6379
_SENTINEL_PORT = 26379
_SENTINEL_USER, _SENTINEL_PASSWORD = "sentinel_user", "sentinel_password"
#: Parameters of an address that are handed to the client library; what else it can do would break what is promised.
_PARAMETERS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
        _SENTINEL_USER,
        _SENTINEL_PASSWORD,
    }
)


class Kind(enum.Enum):
    """Say how the servers behind an address find each other."""

    ONE = "one server"
    CLUSTER = "a cluster"
    SENTINEL = "sentinels"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Address:
    """Hold an address in its parts.

    ``hosts`` are where to begin: the server, some nodes of the cluster, or the sentinels. ``base`` is the plain scheme,
    ``login`` the part before the ``@`` as it was written, ``service`` what the sentinels call the primary.
    """

    kind: Kind
    base: str
    hosts: tuple[tuple[str, int], ...] = ()
    login: str = ""
    database: str = ""
    service: str = ""
    path: str = ""
    parameters: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        """Show where it leads, never a password."""
        return f"Address({self.kind.value}: {', '.join(name_of(*host) for host in self.hosts) or self.path})"

    @property
    def is_tls(self) -> bool:
        """Tell whether the connections are encrypted."""
        return self.base == "rediss"

    def server_url(self, host: str, port: int) -> str:
        """Return the plain address of one server that holds data."""
        return self._url(self.login, host, port, self.database)

    def sentinel_url(self, host: str, port: int) -> str:
        """Return the plain address of one sentinel, which has a login of its own."""
        given = dict(self.parameters)
        user, password = given.get(_SENTINEL_USER, ""), given.get(_SENTINEL_PASSWORD, "")
        login = f"{quote(user, safe='')}:{quote(password, safe='')}" if user or password else ""
        return self._url(login, host, port, "")

    def _url(self, login: str, host: str, port: int, database: str) -> str:
        query = urlencode([(name, value) for name, value in self.parameters if not name.startswith("sentinel_")])
        where = f"{login}@" if login else ""
        return f"{self.base}://{where}{name_of(host, port)}/{database}" + (f"?{query}" if query else "")

    @property
    def socket_url(self) -> str:
        """Return the address of a server that listens on a socket of the file system."""
        where = f"{self.login}@" if self.login else ""
        query = urlencode(self.parameters)
        return f"unix://{where}{self.path}" + (f"?{query}" if query else "")


def name_of(host: str, port: int) -> str:
    """Return a host and port as people write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(url: str) -> Address:
    """Return the parts of an address.

    ``redis://``, ``rediss://`` (TLS) and ``unix://`` name one server; with ``+cluster`` some nodes of a cluster, with
    ``+sentinel`` sentinels, commas between them, and then the name of the service as the path.

    Raises:
        ValueError: it is none of these; the text never holds a password.
    """
    scheme, separator, rest = url.partition("://")
    base, _, kind_name = scheme.lower().partition("+")
    if not separator or base not in ("redis", "rediss", "unix") or kind_name not in ("", "cluster", "sentinel"):
        raise ValueError(
            "must be a URL that starts with redis://, rediss:// or unix://, or with +cluster or +sentinel before ://"
        )
    rest, _, query = rest.partition("?")
    if "#" in rest:
        raise ValueError("must not hold '#'; write %23")
    if base == "unix":
        if kind_name:
            raise ValueError(f"a socket of the file system is one server, so that unix+{kind_name}:// cannot be")
        login, at, path = rest.rpartition("@")
        return Address(kind=Kind.ONE, base=base, login=login if at else "", path=path, parameters=_any(query))
    kind = {"": Kind.ONE, "cluster": Kind.CLUSTER, "sentinel": Kind.SENTINEL}[kind_name]
    where, _, path = rest.partition("/")
    login, _, hosts = where.rpartition("@")
    found = tuple(_host(text, _SENTINEL_PORT if kind is Kind.SENTINEL else _PORT) for text in hosts.split(","))
    if kind is Kind.ONE and len(found) > 1:
        raise ValueError("names several servers: write redis+cluster:// or redis+sentinel://")
    parts = [unquote(part) for part in path.split("/") if part]
    service = ""
    if kind is Kind.SENTINEL:
        if not parts:
            raise ValueError("needs the name of the service that the sentinels watch, as in redis+sentinel://host/name")
        service = parts.pop(0)
    database = parts.pop(0) if parts else ""
    if parts or (database and not database.isdecimal()):
        raise ValueError("must end in the number of a database, or in nothing")
    if kind is Kind.CLUSTER and database not in ("", "0"):
        raise ValueError("names a database, and a cluster has only database 0")
    return Address(
        kind=kind,
        base=base,
        hosts=found,
        login=login,
        database=database,
        service=service,
        parameters=_any(query) if kind is Kind.ONE else _known(query),
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"holds a host that is no host: {text!r}")
    else:
        host, _, port = text.partition(":")
    host = unquote(host) or "localhost"
    if any(character.isspace() or character in ":/@[]" for character in host) and not text.startswith("["):
        raise ValueError(f"holds a host that is no host: {text!r}")
    if not port:
        return host, default_port
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise ValueError(f"holds a port that is no port: {port!r}")
    return host, int(port)


def _any(query: str) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl(query, keep_blank_values=True))


def _known(query: str) -> tuple[tuple[str, str], ...]:
    parameters = _any(query)
    for name, _ in parameters:
        if name not in _PARAMETERS:
            raise ValueError(f"has a parameter {name!r}; use {', '.join(sorted(_PARAMETERS))}")
    return parameters
