"""Loading the user's code and weights, and telling their mistakes in words."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


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


def build_model(root: Path, build: str, weights: Path | None) -> torch.nn.Module:
    """Builds the model and loads its weights, strictly."""
    model = call_user(f"{build}()", load_callable(root, build))
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{build}() returned {type(model).__name__}; expected a torch.nn.Module")
    if weights is not None:
        _load_weights(model, weights)
    return model.eval()


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise UserError(
            f"{path} holds more than tensors, and Skerry never unpickles code: save the weights with "
            "torch.save(model.state_dict(), …)"
        ) from exc
    except Exception as exc:  # torch's old format fails with whatever its bytes happen to mean
        text = str(exc).splitlines()[:1] or [type(exc).__name__]
        raise UserError(f"{path} is not a file of torch weights: {text[0][:200]}") from exc
    state = _state_dict(loaded, path)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as exc:  # a wrong shape
        lines = [line.strip() for line in str(exc).splitlines()[1:]]
        raise UserError(f"{path} does not fit the model: {lines[0][:300]}{_more(lines)}") from exc
    if missing or unexpected:
        parts = [f"missing {missing[0]}{_more(missing)}"] if missing else []
        parts += [f"unexpected {unexpected[0]}{_more(unexpected)}"] if unexpected else []
        raise UserError(f"{path} does not fit the model: {'; '.join(parts)}")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} is not finite{_more(broken)}; it holds NaN or infinity")


def _state_dict(loaded: object, path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in what was loaded: itself, or under the key that training scripts commonly use."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(
            f"{path} holds a {type(loaded).__name__}; expected a state dict: torch.save(model.state_dict(), …)"
        )
    prefix = "module."  # torch.nn.DataParallel's
    if loaded and all(key.startswith(prefix) for key in loaded):
        return {key.removeprefix(prefix): value for key, value in loaded.items()}
    return loaded


def _more(items: list[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
