"""Declare tasks and collect them by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

import msgspec

from penstock.core.durations import parse_duration_ms
from penstock.core.errors import TaskError
from penstock.core.job import TaskInfo
from penstock.core.limits import MAX_ATTEMPTS, NAME_CHARACTERS
from penstock.core.retry import Backoff
from penstock.handlers.binding import Binder, WholeInput
from penstock.handlers.unique import DeclaredUnique, Key

if TYPE_CHECKING:
    from penstock.handlers.schedules import DeclaredSchedule

Executor = Literal["async", "thread", "process"]
EXECUTORS: tuple[Executor, ...] = ("async", "thread", "process")

P = ParamSpec("P")
R = TypeVar("R")
_BACKOFF_KEYS = {"base", "factor", "max", "jitter"}


class Task(Generic[P, R]):
    """Wrap a function that workers run by name; calling it runs the function itself, here and now."""

    __name__: str

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        queue: str | None = None,
        max_attempts: int | None = None,
        backoff: float | str | Mapping[str, Any] | Backoff | None = None,
        timeout: float | str | None = None,
        executor: Executor | None = None,
        schedule: str | Mapping[str, Any] | None = None,
        unique: Key | Mapping[str, Any] | None = None,
        binder: Binder | WholeInput | None = None,
    ) -> None:
        """Check the options; what is None comes from the submit or the deployment's defaults.

        Raises:
            TaskError: an option cannot be used; names the task's place.
        """
        self.function = function
        self.name = name if name is not None else getattr(function, "__name__", "")
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - asks whether an instance is called asynchronously
        )
        self.where = _where(function)
        self._given_binder = binder
        # Handlers of whole types, such as "@ai", are the package's own and bring their binder.
        if binder is None or not self.name.startswith("@"):
            self._check_name("name", self.name)
        if queue is not None:
            self._check_name("queue", queue)
        if max_attempts is not None and not (type(max_attempts) is int and 1 <= max_attempts <= MAX_ATTEMPTS):
            raise TaskError(f"{self.where}: max_attempts must be 1 to {MAX_ATTEMPTS}, not {max_attempts!r}")
        self.executor: Executor = self._check_executor(executor)
        self.info = TaskInfo(
            name=self.name,
            queue=queue,
            max_attempts=max_attempts,
            backoff=self._read_backoff(backoff),
            timeout_ms=self._read_duration("timeout", timeout),
            executor=self.executor,
        )
        functools.update_wrapper(self, function)
        self._unique = None if unique is None else DeclaredUnique(unique, function, where=self.where)
        #: What ``@task(schedule=…)`` declares, under the task's own name.
        self.schedule = None if schedule is None else self._read_schedule(schedule)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function itself, without a queue."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name!r} of {self.where}>"

    @functools.cached_property
    def binder(self) -> Binder | WholeInput:
        """Read the signature once; late, because annotations may name what the module defines further down.

        Raises:
            TaskError: the signature cannot be filled from JSON.
        """
        return self._given_binder or Binder(self.function, where=self.where)

    def submit(self, **arguments: Any) -> Any:
        """Submit a job of this task over HTTP, through the client of the environment, and return its answer."""
        return self.options().submit(**arguments)

    def options(self, **options: Any) -> Submission:
        """Return something to ``submit`` with, under options such as ``delay="5s"`` or ``priority="high"``.

        ``unique_key`` or ``unique`` take the place of what ``@task(unique=…)`` says; None submits without a key.
        """
        own = "unique" in options or "unique_key" in options
        return Submission(self.name, options, unique=None if own else self._unique)

    def _read_schedule(self, value: str | Mapping[str, Any]) -> DeclaredSchedule:
        # The module of schedules builds on this one.
        from penstock.handlers.schedules import declare

        if not isinstance(value, str | Mapping):
            raise TaskError(f"{self.where}: schedule is a cron expression or an object of a schedule's fields")
        options: dict[str, Any] = {"cron": value} if isinstance(value, str) else dict(value)
        name = options.pop("name", self.name)
        given: Any = options.pop("input", {})
        return declare(name, task=self, value=given, options=options, where=self.where)

    def _check_name(self, what: str, name: str) -> None:
        if (
            not 1 <= len(name) <= NAME_CHARACTERS
            or name.startswith("@")
            or any(unicodedata.category(character).startswith("C") for character in name)
        ):
            raise TaskError(
                f"{self.where}: {what} must be 1 to {NAME_CHARACTERS} printable characters, not starting with '@'"
            )

    def _check_executor(self, executor: Executor | None) -> Executor:
        if executor is None:
            return "async" if self.is_async else "thread"
        if executor not in EXECUTORS:
            raise TaskError(f"{self.where}: executor must be one of {', '.join(EXECUTORS)}, not {executor!r}")
        if executor == "async" and not self.is_async:
            raise TaskError(f"{self.where}: a plain function would block the loop; use executor='thread' or 'process'")
        if executor == "thread" and self.is_async:
            raise TaskError(f"{self.where}: an async function runs on the loop or in a process, not on a thread")
        return executor

    def _read_duration(self, what: str, value: float | str | None) -> int | None:
        if value is None:
            return None
        try:
            duration_ms = parse_duration_ms(value)
        except (ValueError, AttributeError, TypeError) as error:
            raise TaskError(f"{self.where}: {what}: {error}") from None
        if duration_ms < 1:
            raise TaskError(f"{self.where}: {what} must be at least one millisecond")
        return duration_ms

    def _read_backoff(self, value: float | str | Mapping[str, Any] | Backoff | None) -> Backoff | None:
        if value is None or isinstance(value, Backoff):
            return value
        if not isinstance(value, Mapping):
            return Backoff(base_ms=self._read_duration("backoff", value) or 0)
        if unknown := set(value) - _BACKOFF_KEYS:
            raise TaskError(
                f"{self.where}: backoff has no {min(unknown)!r}; it takes {', '.join(sorted(_BACKOFF_KEYS))}"
            )
        fields: dict[str, Any] = {key: value[key] for key in ("factor", "jitter") if key in value}
        fields |= {
            f"{key}_ms": self._read_duration(f"backoff.{key}", value[key]) for key in ("base", "max") if key in value
        }
        try:
            return msgspec.convert(fields, Backoff)
        except msgspec.ValidationError as error:
            raise TaskError(f"{self.where}: backoff: {error}") from None


class Submission:
    """Submit jobs of one task under the given options."""

    def __init__(self, name: str, options: Mapping[str, Any], *, unique: DeclaredUnique | None = None) -> None:
        self._name = name
        self._options = dict(options)
        self._unique = unique

    def submit(self, **arguments: Any) -> Any:
        """Submit one job whose input holds the arguments by name.

        Raises:
            TaskError: no unique key can be made of the arguments.
        """
        key = {} if self._unique is None else self._unique.fields(arguments)
        # Looked up when called: the client stands beside this part, and only the package's root knows both.
        return importlib.import_module("penstock").submit_task(self._name, arguments, **self._options, **key)


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *,
    name: str | None = None,
    queue: str | None = None,
    max_attempts: int | None = None,
    backoff: float | str | Mapping[str, Any] | Backoff | None = None,
    timeout: float | str | None = None,
    executor: Executor | None = None,
    schedule: str | Mapping[str, Any] | None = None,
    unique: Key | Mapping[str, Any] | None = None,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a plain or async function, as ``@task`` or ``@task(name=…, timeout="30s", …)``.

    Raises:
        TaskError: an option cannot be used, or the module defines a task of this variable name already.
    """
    if function is None:
        return functools.partial(_declare, options=options)
    return _declare(function, options=options)


def _declare(function: Callable[..., Any], *, options: Mapping[str, Any]) -> Task[..., Any]:
    declared: Task[..., Any] = Task(function, **options)
    # The second of two functions of one name silently replaces the first, so the module alone cannot show it later.
    earlier = getattr(function, "__globals__", {}).get(getattr(function, "__name__", ""))
    if isinstance(earlier, Task) and earlier.name == declared.name and earlier.where != declared.where:
        raise _twice(earlier, declared)
    return declared


class Registry:
    """Hold tasks by name, each with the module that it was found in."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        self._modules: dict[str, str] = {}

    def add(self, declared: Task[..., Any], *, module: str) -> None:
        """Add a task; the same object may come again (one module imports it from another).

        Raises:
            TaskError: another task has this name, or the signature cannot be used.
        """
        earlier = self._tasks.get(declared.name)
        if earlier is declared:
            return
        if earlier is not None:
            raise _twice(earlier, declared)
        # Asked for here so that an unusable signature stops the boot and not the first job.
        _ = declared.binder
        self._tasks[declared.name] = declared
        self._modules[declared.name] = module

    def add_module(self, module: ModuleType) -> int:
        """Add all tasks that are variables of the module; return how many."""
        found = find_tasks(module)
        for declared in found:
            self.add(declared, module=module.__name__)
        return len(found)

    def get(self, name: str) -> Task[..., Any] | None:
        """Return the task announced under this name (``core.job.handler_name``)."""
        return self._tasks.get(name)

    def module_of(self, name: str) -> str:
        """Return the name of the module that the task was found in."""
        return self._modules[name]

    def names(self, executors: Iterable[Executor] = EXECUTORS) -> tuple[str, ...]:
        """Return the names of tasks that run on the given executors."""
        wanted = set(executors)
        return tuple(name for name, declared in self._tasks.items() if declared.executor in wanted)

    def infos(self) -> list[TaskInfo]:
        """Return what workers publish of each task."""
        return [declared.info for declared in self._tasks.values()]


def find_tasks(module: ModuleType) -> list[Task[..., Any]]:
    """Return the tasks among a module's variables, in the order of definition."""
    return list(dict.fromkeys(value for value in vars(module).values() if isinstance(value, Task)))


def _twice(first: Task[..., Any], second: Task[..., Any]) -> TaskError:
    return TaskError(f"two tasks are named {first.name!r}: {first.where} and {second.where}")


def _where(function: Callable[..., Any]) -> str:
    named = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{named} ({code.co_filename}:{code.co_firstlineno})" if code is not None else named
