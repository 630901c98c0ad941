"""Building the user's model and loading its weights, and telling their mistakes in words."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from .serving import one_line
from .usercode import UserError, call_user, load_callable

_SHOWN = 3  # names in a message


def build_model(root: Path, build: str, weights: Path | None) -> torch.nn.Module:
    """Builds the model and loads its weights, strictly."""
    model = call_user(f"{build}()", load_callable(root, build))
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{build}() returned {type(model).__name__}; expected a torch.nn.Module")
    model = dict(model.named_children()).get("_orig_mod", model)  # what torch.compile wraps: its kernels are no part
    if weights is not None:
        _load_weights(model, weights)
    model.eval()
    if busy := [name or type(model).__name__ for name, part in model.named_modules() if part.training]:
        raise UserError(
            f"the model stays in training mode after eval(): {_few(busy)}; its own train() or eval() keeps it there"
        )
    return model


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
        raise UserError(f"{path} is not a file of torch weights: {type(exc).__name__}: {one_line(exc)[:200]}") from exc
    state = _without_prefix(_state_dict(loaded, path), set(model.state_dict()))
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as exc:  # a wrong shape
        lines = [line.strip().removesuffix(".")[:200] for line in str(exc).splitlines()[1:]]
        raise UserError(f"{path} does not fit the model: {_few(lines, '; ')}") from exc
    if missing or unexpected:
        parts = [f"missing {_few(missing)}"] if missing else []
        parts += [f"unexpected {_few(unexpected)}"] if unexpected else []
        raise UserError(f"{path} does not fit the model: {'; '.join(parts)}")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{path}: not finite: {_few(broken)}; expected weights without NaN and infinity")


def _state_dict(loaded: object, path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in what was loaded: itself, or under the key that training scripts commonly use."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        inside = f" of {_few(list(map(str, loaded)))}" if isinstance(loaded, Mapping) else ""
        holds = f"a {type(loaded).__name__}{inside}"
        raise UserError(f"{path} holds {holds}; expected a state dict: torch.save(model.state_dict(), …)")
    return loaded


def _without_prefix(state: Mapping[str, torch.Tensor], wanted: set[str]) -> Mapping[str, torch.Tensor]:
    """The state dict without what a wrapper put before every name, if the model's own names are left.

    "module." is DataParallel's, "_orig_mod." torch.compile's, "model." and "net." are a Lightning module's.
    """
    for key in list(state)[:1]:
        for end in (i + 1 for i, letter in enumerate(key) if letter == "."):
            bare = {name[end:]: value for name, value in state.items() if name.startswith(key[:end])}
            counted = {name for name in wanted if name.endswith("num_batches_tracked")}  # old files have none
            if wanted - counted <= set(bare) <= wanted and len(bare) == len(state):
                return bare
    return state


def _few(items: Sequence[str], between: str = ", ") -> str:
    """The first of many, and how many there are besides."""
    more = f" (and {len(items) - _SHOWN} more)" if len(items) > _SHOWN else ""
    return between.join(items[:_SHOWN]) + more
