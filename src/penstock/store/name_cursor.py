"""Write and read cursors of listings that are in the order of names."""

from __future__ import annotations

import base64
import binascii


def write(name: str) -> str:
    """Return a cursor that stands behind a name."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def read(cursor: str) -> str:
    """Return the name that a cursor stands behind.

    Raises:
        ValueError: it is not a cursor of such a listing.
    """
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise ValueError("not a cursor of this listing") from error
