"""What an ONNX or ``.pt2`` file says of itself, as a recipe's values: nobody has to write down what the file knows.

Read in this process, and so by parsing alone; whatever runs the file is in the child.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.candidate import file_digest
from compiler.child import foreign_entry, foreign_read, program
from compiler.child.foreign_tidy import plain_names
from skerry.errors import UsageError

KINDS = {".onnx": "onnx", ".pt2": "pt2"}
_INSTEAD = {
    ".pt": "TorchScript and pickled models hold code, and Skerry never runs that unasked; save the model with "
    "torch.export.save(torch.export.export(model, …), 'net.pt2'), or name the code that builds it, file.py:callable",
    ".pth": "it holds weights alone; name the code that builds the model, file.py:callable, and these with --weights",
}
_INSTEAD |= {".ts": _INSTEAD[".pt"], ".torchscript": _INSTEAD[".pt"], ".safetensors": _INSTEAD[".pth"]}
_ACTIVATED = {"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid"}

Values = dict[str, Any]


def check_kind(file: Path) -> None:
    """Raises `UsageError` for a file that is known not to be a model by itself."""
    if why := _INSTEAD.get(file.suffix.lower()):
        raise UsageError(f"{file.name} is not something to compile: {why}")


def release_name(text: str) -> str:
    """A release's name out of a folder's or a file's: no accents, and a dash for whatever it may not hold."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:64] or "model"


def complete(values: Values, file: Path, shape: list[int] | None) -> None:
    """Writes into a recipe's ``values`` what it leaves to the ``file``: the input's size and the outputs' names.

    Raises:
        UsageError: the file leaves the size open, and nobody says it.
        SkerryError: it cannot be compiled at all.
    """
    entry = values.setdefault("input", {})
    wanted = shape or entry.get("shape")
    if not isinstance(entry, dict) or not (wanted is None or _is_shape(wanted)):
        return  # the recipe's schema says it better
    if file.suffix == ".pt2":
        entry["shape"] = foreign_entry.bind(program.describe(file).entry, wanted, file.name)
        return
    model = foreign_read.parse(file)
    entry["shape"] = foreign_entry.bind(foreign_entry.entry(model, file.name), wanted, file.name)
    names = [value.name for value in foreign_entry.exits(model, file.name)]
    values["model"].setdefault("outputs", [*plain_names(names, {}).values()])


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) and size > 0 for size in value)


def guess(file: Path, shape: list[int] | None) -> tuple[Values, list[str]]:
    """A whole recipe for a classifier of images without one, and what was assumed.

    Raises:
        UsageError: it does not look like one.
    """
    values: Values = {
        "name": release_name(file.stem),
        "model": {KINDS[file.suffix]: file.name},
    }
    complete(values, file, shape)
    exits, dtype, activation = _ends(file)
    _check_scores(exits, file)
    size = values["input"]["shape"]
    values["model"]["outputs"] = ["scores"]
    values["preprocess"], said = _preprocess(size, dtype, file)
    values["postprocess"] = {"kind": "classification", "scores": "scores", "activation": activation}
    ends = "the graph ends in its activation" if activation == "none" else "softmax over its output"
    kind = "gray" if values["preprocess"]["color"] == "gray" else "RGB"
    shown = f"{'x'.join(map(str, size))} ({values['preprocess']['layout']})"
    return values, [f"no recipe.toml beside {file.name}: a classifier of {kind} images, input {shown}; {ends}", said]


def _check_scores(exits: Sequence[foreign_entry.Value], file: Path) -> None:
    """Holds the outputs to what a classifier gives: one tensor of floats."""
    if len(exits) != 1:
        raise UsageError(
            f"{file.name} gives {len(exits)} outputs ({', '.join(value.name for value in exits[:6])}); a recipe.toml "
            "beside it has to say what they mean, and what the image is made into (see docs/sources.md)"
        )
    if len([size for size in (exits[0].dims or [])[1:] if size != 1]) > 1:
        shown = foreign_entry.words(exits[0].dims or [])
        raise UsageError(
            f"{file.name} gives {exits[0].name!r} of {shown}, which is more than one score for each class; a "
            "recipe.toml beside it has to say what it means (see docs/sources.md)"
        )
    if "float" not in exits[0].dtype:
        raise UsageError(
            f"{file.name} gives {exits[0].name!r} as {exits[0].dtype}, which are no scores; export the model without "
            "the ArgMax or rounding at its end, or say in a recipe.toml beside it what it gives"
        )


def _preprocess(shape: list[int], dtype: str, file: Path) -> tuple[Values, str]:
    """The pre-processing that most classifiers were trained with, and the words for it."""
    layout, color, (height, width) = _layout(shape, file)
    short = round(min(height, width) / 0.875)
    values: Values = {"resize": "crop", "resize_to": short, "layout": layout, "color": color}
    if dtype == "uint8":
        pixels = "pixels as they are"
    elif color == "gray":
        pixels = "pixels from 0 to 1"
    else:
        pixels = "ImageNet's mean and std"
        values |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return values, f"pre-processing: shorter side to {short}, centre crop, {pixels}"


def _ends(file: Path) -> tuple[list[foreign_entry.Value], str, str]:
    """The outputs, the input's type, and the activation that the scores still need."""
    if file.suffix == ".pt2":
        return program.describe(file).exits, "float32", "softmax"
    model = foreign_read.parse(file)
    exits = foreign_entry.exits(model, file.name)
    last = next((node.op_type for node in reversed(model.graph.node) if exits[0].name in node.output), "")
    return exits, foreign_entry.entry(model, file.name).dtype, "none" if last in _ACTIVATED else "softmax"


def _layout(shape: list[int], file: Path) -> tuple[str, str, tuple[int, int]]:
    colors = {1: "gray", 3: "rgb"}
    if len(shape) == 4 and shape[1] in colors:
        return "nchw", colors[shape[1]], (shape[2], shape[3])
    if len(shape) == 4 and shape[3] in colors:
        return "nhwc", colors[shape[3]], (shape[1], shape[2])
    raise UsageError(
        f"{file.name} takes an input of {'x'.join(map(str, shape))}, which is no image of 1 or 3 colours; expected "
        "1xCxHxW or 1xHxWxC"
    )


def digests(file: Path) -> dict[str, str]:
    """SHA-256 of a model file and of the files beside it that hold its weights, by name."""
    found = {file.name: file_digest(file)}
    if file.suffix == ".onnx":
        for name in foreign_read.external_files(foreign_read.parse(file)):
            found[name] = file_digest(foreign_read.beside(file, name))
    return found
