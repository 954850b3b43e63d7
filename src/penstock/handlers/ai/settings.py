"""Hold the options of the AI handler; the environment is read elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_TIMEOUT_MS = 60_000


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class AISettings:
    """Say where AI jobs run: on an OpenAI-style server when `base_url` is set, on this machine otherwise.

    `base_url` is what comes before `/chat/completions`, so it mostly ends in `/v1` (`PENSTOCK_AI_BASE_URL`); `model` is
    then needed (`PENSTOCK_AI_MODEL`); `api_key` is sent as a bearer token and never shown (`PENSTOCK_AI_API_KEY`).
    `timeout_ms` bounds one whole call, from connecting to the last byte. Raises `ValueError` that names the setting.
    """

    base_url: str | None = None
    api_key: str | None = None
    model: str | None = None
    timeout_ms: int = DEFAULT_TIMEOUT_MS

    def __post_init__(self) -> None:
        # An empty variable in a Compose file means "not set".
        for name in ("base_url", "api_key", "model"):
            object.__setattr__(self, name, (getattr(self, name) or "").strip() or None)
        if self.timeout_ms < 1:
            raise ValueError("PENSTOCK_AI_TIMEOUT must be at least 1 ms")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError("PENSTOCK_AI_API_KEY holds a character that no HTTP header may carry")
        if self.base_url is not None:
            _check_base_url(self.base_url)
            if self.model is None:
                raise ValueError("PENSTOCK_AI_MODEL is needed beside a base URL")

    def __repr__(self) -> str:
        key = "'***'" if self.api_key else None
        return (
            f"AISettings(base_url={self.base_url!r}, api_key={key}, model={self.model!r}, timeout_ms={self.timeout_ms})"
        )


def _check_base_url(base_url: str) -> None:
    # The address itself stays out of the messages: it may hold a password.
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("PENSTOCK_AI_BASE_URL must be an address such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("PENSTOCK_AI_BASE_URL must not hold a user or password; a key has a setting of its own")
    if parts.query or parts.fragment:
        raise ValueError("PENSTOCK_AI_BASE_URL must not hold a query or a fragment")
