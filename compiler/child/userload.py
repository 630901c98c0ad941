"""Building the user's model and loading its weights, and telling their mistakes in words."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from .usercode import UserError, call_user, load_callable


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
        if path.suffix == ".safetensors":
            loaded: object = load_file(path)
        else:
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
