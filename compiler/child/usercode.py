"""Calling the user's code, and telling its mistakes in words. Needs no torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something that the user can mend in the code, the weights or the recipe."""


def load_callable(root: Path, name: str) -> Callable[..., Any]:
    """``file.py:callable`` below ``root``."""
    file, _, attribute = name.partition(":")
    path = root / file
    if not path.is_file():
        raise UserError(f"{path} is not there (the recipe names {name})")
    module = call_user(f"importing {file}", _import, root, path)
    try:
        function = getattr(module, attribute)
    except AttributeError:
        found = ", ".join(n for n in vars(module) if not n.startswith("_"))[:200]
        raise UserError(f"{file} has no {attribute!r}; it has: {found}") from None
    if not callable(function):
        raise UserError(f"{name} is not callable")
    return function  # type: ignore[no-any-return]


def _import(root: Path, path: Path) -> object:
    """Imports a file under its dotted name, so that its package's own imports work; never shadows what is loaded."""
    dotted = ".".join(path.relative_to(root).with_suffix("").parts)
    if dotted in sys.modules and getattr(sys.modules[dotted], "__file__", None) != str(path):
        dotted = f"_user_{dotted}"
    if dotted in sys.modules:
        return sys.modules[dotted]
    if "." in dotted:
        return importlib.import_module(dotted)
    spec = importlib.util.spec_from_file_location(dotted, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[dotted] = module
    spec.loader.exec_module(module)
    return module


def call_user(what: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Calls the user's code; what it raises becomes a `UserError` that names the line."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as exc:
        text = str(exc).strip().splitlines()
        said = f"{type(exc).__name__}: {text[0][:300]}" if text else type(exc).__name__
        raise UserError(f"{what} failed: {said} ({raised_at(exc)})") from exc


def raised_at(exc: BaseException) -> str:
    """File and line where an exception was raised."""
    where = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{Path(where.filename).name}:{where.lineno}"
