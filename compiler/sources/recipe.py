"""What to compile, as data: ``recipe.toml`` beside the user's code, or the command line's options.

A recipe holds values; what is computed is named as ``file.py:callable`` and called in the child process only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from compiler.sources import foreign
from skerry.config import convert, read_toml
from skerry.errors import ConfigError, FormatError, UsageError
from skerry.manifest import FLOOR, Classification, Detection, InGraph, Limits, Positive, Preprocess, check_name, tighter

MIN_CALIBRATION_FRAMES = 100  # fewer say little about a camera's whole day: refused, or forced and marked


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The user's code, or a file that holds the whole model.

    Attributes:
        build: ``file.py:callable`` without arguments that returns a torch.nn.Module.
        onnx: an ONNX file instead; it is its own reference, and no torch is needed.
        pt2: a file from torch.export.save instead.
        weights: a file with its state dict; the command line's --weights wins.
        weights_from: where a stranger gets that file, shown when it is missing.
        preprocess: ``file.py:callable`` from an RGB uint8 array [H, W, 3] to the input tensor, by the code that the net
            was trained with. The compiler holds the recipe's own pre-processing to it.
        outputs: names for what the net returns, in order (a tensor, a tuple or list of tensors, or a dict's values).
    """

    build: str = ""
    onnx: str | None = None
    pt2: str | None = None
    weights: str | None = None
    weights_from: str | None = None
    preprocess: str | None = None
    outputs: tuple[str, ...] = ("output",)


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The net's image input, batch 1.

    Attributes:
        batch: the least and the most images that the exported graphs are to take at once.
    """

    name: str = "image"
    shape: list[Positive]
    batch: tuple[Positive, Positive] | None = None


class PreprocessSettings(Preprocess, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`skerry.manifest.Preprocess`, refusing what it does not know."""


class ClassificationSettings(
    Classification, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="classification"
):
    """`skerry.manifest.Classification`, refusing what it does not know."""


class DetectionSettings(
    Detection, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="detection"
):
    """`skerry.manifest.Detection`, refusing what it does not know."""


class GraphSettings(InGraph, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`skerry.manifest.InGraph`, refusing what it does not know."""


class ProofSettings(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the release is to prove itself: `skerry.manifest.Limits`, and how many frames go along."""

    frames: Positive = 16
    licence: str = "not stated"
    consent: str = "not stated"

    def limits(self) -> Limits:
        return Limits(**{name: getattr(self, name) for name in Limits.__struct_fields__})


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a compilation makes, but for the data and the targets."""

    format: Literal["skerry.recipe/1"] = "skerry.recipe/1"
    name: str
    version: Positive = 1
    model: Model
    input: Input
    preprocess: PreprocessSettings
    postprocess: ClassificationSettings | DetectionSettings
    labels: str | None = None
    proof: ProofSettings = ProofSettings()
    graph: GraphSettings | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe and where its files lie.

    Attributes:
        file: the ONNX or ``.pt2`` file that is the model, where no code builds it.
        assumed: what the user did not say and was assumed; printed, and kept in the evidence.
    """

    recipe: Recipe
    root: Path
    file: Path | None = None
    weights: Path | None
    labels: list[str]
    assumed: list[str]


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """The command line's options that change a recipe; None leaves it alone."""

    name: str | None = None
    version: int | None = None
    weights: Path | None = None
    shape: list[int] | None = None
    labels: Path | None = None
    batch: tuple[int, int] | None = None


def load(target: str, overrides: Overrides) -> Source:
    """Reads ``folder`` (with a recipe.toml in it), ``file.py:callable``, or a ``.onnx`` or ``.pt2`` file.

    Raises:
        UsageError: the target, the weights or the labels are not there.
        ConfigError: the recipe is wrong; the message names the key.
        SkerryError: a model file cannot be read.
    """
    path, _, function = target.rpartition(":") if ".py:" in target else (target, "", "")
    if function:
        return _from_callable(Path(path), function, overrides)
    if Path(target).suffix in foreign.KINDS:
        return _from_file(Path(target), overrides)
    foreign.check_kind(Path(target))
    return _from_folder(Path(target), overrides)


def _from_file(file: Path, overrides: Overrides) -> Source:
    """The recipe beside a model file, with this file in it; or a plain classifier's, and every assumption said."""
    if not file.is_file():
        raise UsageError(f"{file} is not there; expected an ONNX file, or one from torch.export.save (.pt2)")
    folder, beside = file.absolute().parent, file.absolute().parent / "recipe.toml"
    if not beside.is_file():
        values, assumed = foreign.guess(file, overrides.shape)
        return _resolve(values, str(file), folder, overrides, assumed)
    values = read_toml(beside)
    model = values.get("model", {})
    kept = {key: model[key] for key in ("outputs", "preprocess") if key in model}
    values["model"] = {**kept, foreign.KINDS[file.suffix]: file.name}
    return _resolve(values, str(beside), folder, overrides, [])


def _from_folder(folder: Path, overrides: Overrides) -> Source:
    file = folder / "recipe.toml"
    if not file.is_file():
        raise UsageError(
            f"{folder} is not something to compile: expected a folder with a recipe.toml, or file.py:callable "
            "for a function that builds the model, or a .onnx or .pt2 file"
        )
    return _resolve(read_toml(file), str(file), folder, overrides, [])


def _from_callable(file: Path, function: str, overrides: Overrides) -> Source:
    """The recipe at the code's root, with this callable; or a plain ImageNet-style one, and every assumption said."""
    if not file.is_file():
        raise UsageError(
            f"{file} is not there; expected a Python file with a function {function}() that builds the model"
        )
    root = _root(file)
    build, beside = f"{file.absolute().relative_to(root).as_posix()}:{function}", root / "recipe.toml"
    if beside.is_file():
        values = read_toml(beside)
        values.setdefault("model", {})["build"] = build
        return _resolve(values, str(beside), root, overrides, [])
    size = (overrides.shape or [1, 3, 224, 224])[2:]
    values = {
        "name": foreign.release_name(root.name),
        "model": {"build": build, "outputs": ["scores"]},
        "input": {"shape": [1, 3, *size]},
        "preprocess": {
            "resize": "crop",
            "resize_to": round(min(size) / 0.875),
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "postprocess": {"kind": "classification", "scores": "scores"},
    }
    assumed = [
        f"no recipe.toml beside {file.name}: a classifier of RGB images, input 1x3x{size[0]}x{size[1]} (see --input)",
        f"pre-processing: shorter side to {round(min(size) / 0.875)}, centre crop, ImageNet's mean and std",
    ]
    return _resolve(values, str(file), root, overrides, assumed)


def _root(file: Path) -> Path:
    """The folder that the file's imports start from: above the package that it is in, if it is in one."""
    folder = file.absolute().parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _resolve(values: dict[str, Any], origin: str, folder: Path, overrides: Overrides, assumed: list[str]) -> Source:
    options = {key: value for key in ("name", "version") if (value := getattr(overrides, key)) is not None}
    values = {**values, **options}
    if overrides.shape is not None:
        values["input"] = {**values.get("input", {}), "shape": overrides.shape}
    if overrides.batch is not None:
        values["input"] = {**values.get("input", {}), "batch": list(overrides.batch)}
    file = _model_file(values, origin, folder)
    if file is not None:
        foreign.complete(values, file, overrides.shape)
    recipe = convert(values, Recipe, f"{origin} and the command's options" if options else origin)
    _check_limits(recipe.proof.limits(), origin)
    if recipe.input.batch is not None and recipe.input.batch[0] > recipe.input.batch[1]:
        raise ConfigError(
            f"{origin}: expected the least and the most images, found {recipe.input.batch} - at `$.input.batch`"
        )
    try:
        check_name(recipe.name)
    except FormatError as exc:
        raise UsageError(
            f"the release's name {recipe.name!r}: expected 1 to 64 of a-z 0-9 . _ - in the recipe or with --name"
        ) from exc
    weights = _weights(recipe, folder, overrides.weights)
    if weights is None and file is None:
        assumed = [*assumed, "no weights: the model is compiled as its builder returns it (see --weights)"]
    return Source(
        recipe=recipe,
        root=folder,
        file=file,
        weights=weights,
        labels=_labels(recipe, folder, overrides.labels),
        assumed=assumed,
    )


def _model_file(values: dict[str, Any], origin: str, folder: Path) -> Path | None:
    """The file that is the model, if no code builds it. Raises `ConfigError` if the recipe does not say just one."""
    model = values.get("model")
    if not isinstance(model, dict):
        return None  # for the schema to refuse
    said = [key for key in ("build", *foreign.KINDS.values()) if model.get(key)]
    if len(said) != 1:
        raise ConfigError(
            f"{origin}: expected one of `build`, `onnx` and `pt2`, found {' and '.join(said) or 'none'} - at `$.model`"
        )
    if said == ["build"] or not isinstance(model[said[0]], str):
        return None
    if model.get("weights"):
        raise ConfigError(f"{origin}: a model file holds its own weights - at `$.model.weights`")
    file = folder / model[said[0]]
    if not file.is_file() or foreign.KINDS.get(file.suffix) != said[0]:
        raise UsageError(f"{file} is not there, or is no .{said[0]} file (the recipe names it)")
    return Path(file.absolute())


def _check_limits(limits: Limits, origin: str) -> None:
    for name, value in msgspec.structs.asdict(limits).items():
        if not math.isfinite(value):
            raise ConfigError(f"{origin}: expected a finite number, found {value} - at `$.proof.{name}`")
    if tighter(limits, FLOOR) != limits:
        raise ConfigError(f"{origin}: the proof's limits are looser than any release may have: {FLOOR}")


def _weights(recipe: Recipe, folder: Path, given: Path | None) -> Path | None:
    if given is not None and not recipe.model.build:
        raise UsageError(f"--weights {given}: a model file holds its own weights")
    if given is None and recipe.model.weights is None:
        return None
    path = given or folder / str(recipe.model.weights)
    if not path.is_file():
        hint = f"; get it from {recipe.model.weights_from}" if recipe.model.weights_from else ""
        raise UsageError(f"weights {path} are not there{hint}; name the file with --weights")
    return path.absolute()


def _labels(recipe: Recipe, folder: Path, given: Path | None) -> list[str]:
    if given is None and recipe.labels is None:
        return []
    path = given or folder / str(recipe.labels)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(
            f"cannot read the labels {path}: {exc}; expected a text file, one label a line, in UTF-8"
        ) from exc
    return [line.strip() for line in lines if line.strip()]
