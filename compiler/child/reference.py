"""What the reference, whatever runs it, makes of the report frames. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from skerry.execution.frames import read_frames
from skerry.execution.processing import Frame, Preprocessor
from skerry.manifest import Interface

from .usercode import UserError, call_user, load_callable

Array = NDArray[np.generic]


def write_reference(
    samples: Sequence[Sequence[Any]],
    preprocess: Callable[[Frame], Array] | None,
    interface: Interface,
    run: Callable[[Array], Mapping[str, Array]],
    progress: Callable[[int], None],
) -> dict[str, Array]:
    """Runs samples (path, frame number); returns "input/<i>" and "output/<name>/<i>".

    The input comes from the user's own pre-processing if there is one, else from ours.
    """
    ours, entry = Preprocessor(interface), interface.inputs[0]
    tensors: dict[str, Array] = {}
    for index, frame in enumerate(read_frames([(path, number) for path, number in samples])):
        tensor = np.zeros(entry.shape, entry.dtype)
        if preprocess is not None:
            tensor = preprocess(frame)
        else:
            ours(frame, tensor)
        tensors[f"input/{index}"] = tensor
        answers = run(tensor)
        if broken := [name for name, value in answers.items() if not np.isfinite(value).all()]:
            raise UserError(
                f"the model's {', '.join(broken)} of {samples[index][0]} is not finite: expected numbers without NaN "
                "and infinity; look into the model and its pre-processing"
            )
        tensors.update({f"output/{name}/{index}": value for name, value in answers.items()})
        progress(index + 1)
    return tensors


def own_preprocessing(root: Path, name: str, shape: list[int], dtype: str) -> Callable[[Frame], Array]:
    """The user's ``file.py:callable``, held to the input's shape."""
    theirs = load_callable(root, name)

    def run(frame: Frame) -> Array:
        tensor = np.asarray(call_user(f"{name} on a frame {frame.shape}", theirs, frame), dtype)
        if list(tensor.shape) != shape and [1, *tensor.shape] != shape:
            raise UserError(f"{name} returned {list(tensor.shape)}; expected {shape}")
        return np.ascontiguousarray(tensor).reshape(shape)  # safetensors would store a transposed view wrongly

    return run


def reference_job(
    root: Path,
    run: Callable[[Array], Mapping[str, Array]],
    progress: Callable[[str], None],
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """The ``reference`` job: ``request`` holds samples, preprocess, interface (a file) and out (a file)."""
    samples, name = request["samples"], request["preprocess"]
    interface = msgspec.json.decode(Path(request["interface"]).read_bytes(), type=Interface)
    entry = interface.inputs[0]
    theirs = own_preprocessing(root, name, entry.shape, entry.dtype) if name else None
    tensors = write_reference(
        samples, theirs, interface, run, lambda done: progress(f"the reference on frame {done} of {len(samples)}")
    )
    save_file(tensors, request["out"])
    return {"own_preprocessing": theirs is not None}
