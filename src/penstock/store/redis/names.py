"""Resolve host names within a time limit.

The loop's own way waits for a thread of the resolver, which nothing can stop: a name server that is away would hold up
each call for ten seconds, and the end of the process as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading

RESOLVE_TIMEOUT_S = 2.0

#: A look-up that is under way, for each loop and name: callers share it.
_under_way: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[list[str]]] = {}


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def resolve(host: str) -> list[str]:
    """Return the addresses of a host, in the resolver's order; a literal address stands for itself.

    Raises:
        OSError: there is no such name, or no answer came in time.
    """
    if _is_literal(host):
        return [host]
    loop = asyncio.get_running_loop()
    key = (loop, host)
    answer = _under_way.get(key)
    if answer is None:
        answer = _under_way[key] = loop.create_future()
        # A daemon: the process ends without it.
        threading.Thread(target=_look_up, args=(loop, host, answer), name="penstock-resolve", daemon=True).start()
    done, _ = await asyncio.wait({answer}, timeout=RESOLVE_TIMEOUT_S)
    if not done:
        raise OSError(f"the name {host} was not resolved within {RESOLVE_TIMEOUT_S:g} s")
    return answer.result()


def _look_up(loop: asyncio.AbstractEventLoop, host: str, answer: asyncio.Future[list[str]]) -> None:
    found: list[str] | OSError
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    except (OSError, UnicodeError) as error:
        found = error if isinstance(error, OSError) else OSError(f"no host can be named {host}")

    def tell() -> None:
        _under_way.pop((loop, host), None)
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
            # Those who waited may all have gone by now.
            answer.exception()
        else:
            answer.set_result(found)

    # The loop may have ended meanwhile.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(tell)
