"""Make flags of the settings, so that a command names only what is its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.exits import CommandFailed, Exit
from penstock.config import SETTINGS, Setting, Settings, environ_for_children, load, take_parent_descriptor
from penstock.core.errors import ConfigError

if TYPE_CHECKING:
    from penstock.client import Client

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]


def new_app(*, no_args_is_help: bool = False) -> typer.Typer:
    """Return an application for one command; its help is plain text, as for the whole."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=no_args_is_help)


def with_settings(*parts: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the flags of the settings of ``parts``, and the settings as its argument ``settings``.

    An argument ``child_env`` gets the environment for child processes, with the flags in it.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        flags = [setting for setting in SETTINGS if set(setting.parts) & set(parts)]
        signature = inspect.signature(function, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name not in {"settings", "child_env"}]

        @functools.wraps(function)
        def command(**values: Any) -> Any:
            given = {setting.name: _text_of(setting, values.pop(setting.name)) for setting in flags}
            extra: dict[str, Any] = {"settings": load(flags=given)}
            if "child_env" in signature.parameters:
                extra["child_env"] = environ_for_children(given)
            return function(**values, **extra)

        parameters = [*own, *(_parameter(setting) for setting in flags)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        # The framework would look at the function's own annotations instead.
        del command.__dict__["__wrapped__"]
        return command

    return decorate


def _parameter(setting: Setting) -> inspect.Parameter:
    kind = bool if setting.is_switch else str
    variable = f"{setting.env} or {setting.env_file}" if setting.secret else setting.env
    default = f" [default: {setting.shown}]" if setting.shown else ""
    option = typer.Option(
        setting.flag,
        help=f"{setting.help} [env: {variable}]{default}".replace("`", ""),
        metavar=None if setting.is_switch else "VALUE",
        show_default=False,
    )
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _text_of(setting: Setting, value: Any) -> str | None:
    if value is None or (setting.is_switch and value is False):
        return None
    return "true" if value is True else str(value)


def server_url(settings: Settings) -> str:
    """Return the server to talk to: the one named, else that of the instance in this folder, else this machine's."""
    if settings.url is None and (settings.data_dir / "lock").exists():
        from penstock.embedded import find_instance

        if (instance := find_instance(settings.data_dir)) is not None:
            return instance.api_url
    return settings.server_url


def open_client(settings: Settings, *, retries: int = 0) -> Client:
    """Return a client for the server; a command that does not wait says at once that nothing answers."""
    from penstock.client import Client

    return Client(server_url(settings), api_key=settings.api_key or "", retries=retries)


def redis_url(settings: Settings) -> str:
    """Return the Redis that the settings name, else that of the instance in this folder. Raises ConfigError."""
    if settings.redis_url is not None:
        return settings.redis_url
    from penstock.embedded import find_instance

    if (instance := find_instance(settings.data_dir)) is not None:
        return instance.redis_url
    raise ConfigError(
        "PENSTOCK_REDIS_URL",
        f"not set, and no instance runs in {settings.data_dir}; start one with 'penstock up' in this folder, "
        "or name a server with --redis-url redis://HOST:6379",
    )


def prepare_server(settings: Settings) -> None:
    """Set up what ``api`` and ``worker`` share: the log, and their end with the supervisor that started them."""
    from penstock.observability.logs import configure_logging

    configure_logging(json=settings.log_json, level=settings.log_level)
    descriptor = take_parent_descriptor()
    if descriptor is not None:
        from penstock.embedded import exit_with_parent

        try:
            exit_with_parent(descriptor)
        except ValueError as error:
            raise CommandFailed(str(error), Exit.USAGE) from error
