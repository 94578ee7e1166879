"""Finding the user's own function by its name, `package.module:name`.

Modules are looked for in the working folder and on Python's path. Knows nothing of what it is for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.core.errors import UserError


def load_function(field: str, name: str) -> Callable[..., Any]:
    """Import the module and take the function.

    Args:
        field: the recipe's key, for errors.
        name: `package.module:name`.

    Raises:
        UserError: there is no such module or function, or importing it fails.
    """
    module_name, _, function_name = name.partition(":")
    with _working_folder_first():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UserError(
                field,
                f"there is no module {error.name}",
                value=name,
                action="put it in the folder you start from, or on PYTHONPATH",
            ) from None
        except Exception as error:  # the user's module may raise anything
            raise UserError(
                field,
                f"importing {module_name} failed: {type(error).__name__}: {error}",
                value=name,
            ) from None
    found = getattr(module, function_name, None)
    if not callable(found):
        raise UserError(field, f"{module_name} has no function {function_name}", value=name)
    function: Callable[..., Any] = found
    return function


def source_of(name: str) -> Path | None:
    """The file that holds the function's module, or `None` where it has none or is not there."""
    with _working_folder_first():
        try:
            spec = importlib.util.find_spec(name.partition(":")[0])
        except Exception:  # importing the parents may raise anything; `load_function` says what
            return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


@contextmanager
def _working_folder_first() -> Iterator[None]:
    folder = os.getcwd()
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
