"""Import the modules that hold tasks."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from penstock.core.errors import TaskError
from penstock.handlers.registry import Registry
from penstock.handlers.schedules import find_schedules


def import_module(name: str) -> ModuleType:
    """Import a task module, with the current folder on the import path.

    Raises:
        TaskError: there is no such module, or its code raised; one line that says which.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = "; name the module, not the file" if name.endswith(".py") else ""
            raise TaskError(f"no module named {name!r} in {folder} or on the Python path{hint}") from None
        raise TaskError(f"module {name!r} needs {error.name!r}, which is not installed") from error
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        where = _place(error)
        raise TaskError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}{where}") from error


def _place(error: BaseException) -> str:
    """Tell which line of a module raised; a syntax error tells it itself."""
    if isinstance(error, SyntaxError):
        return ""
    # Inside a call, the line that called tells more than one of a library.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def load_modules(registry: Registry, names: Iterable[str]) -> list[ModuleType]:
    """Import each module and add its tasks to the registry; return the modules.

    Raises:
        TaskError: a module is missing, broken or without tasks, or two tasks share a name.
    """
    modules = []
    for name in dict.fromkeys(names):
        module = import_module(name)
        if registry.add_module(module) == 0 and not find_schedules([module]):
            raise TaskError(f"module {name!r} has no tasks; decorate a function with penstock.task")
        modules.append(module)
    return modules
