"""Run the HTTP API."""

from __future__ import annotations

from penstock.cli.flags import new_app, prepare_server, redis_url, with_settings
from penstock.config import Settings

app = new_app()


@app.command()
@with_settings("api", "store", "durability", "logs", "limits")
def api(*, settings: Settings) -> None:
    """Run the HTTP API until SIGINT or SIGTERM.

    On another address than loopback it needs keys, or --insecure.
    """
    prepare_server(settings)
    options = settings.api_options()
    store_options = settings.store_options(redis_url(settings))
    from penstock.api.server import serve

    serve(options, store_options)
