"""Run the steps on an image, in order, and count.

Usage: python -m scripts.container_tests IMAGE [NAME ...]

Names choose steps by a part of their names; those that they build on are not added.
"""

from __future__ import annotations

import signal
import sys
import time

from scripts.container_tests.stack import Stack
from scripts.container_tests.steps import Steps


def main(image: str, *names: str) -> int:
    """Run the steps; the exit code is 1 if any failed."""
    # `make` and CI end us with SIGTERM; what runs in containers would stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stack, began = Stack(image), time.monotonic()
    passed = failed = 0
    try:
        for step in Steps(stack).all():
            name = step.__name__.replace("_", " ")
            if names and not any(part in step.__name__ for part in names):
                continue
            step_began = time.monotonic()
            try:
                word, detail = "ok    ", step()
                passed += 1
            except Exception as error:  # noqa: BLE001 - the next step tells how far the trouble goes
                word, detail = "FAILED", f"{type(error).__name__}: {str(error)[:4_000]}"
                failed += 1
            print(f"{word}  {name} ({time.monotonic() - step_began:.0f} s): {detail}", flush=True)
        if failed:
            print(stack.compose_any("logs", "--no-color", "--tail", "40").stdout)
    finally:
        stack.remove()
    print(f"{time.monotonic() - began:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
