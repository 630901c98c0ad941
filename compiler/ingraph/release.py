"""A release whose graph takes frames: which frames judge, what is drawn, how it is held to the runtime."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx

from compiler.data.samples import Samples
from compiler.evaluation.compare import Hop, Reference, literally, on_backend
from compiler.ingraph.difference import Difference
from compiler.ingraph.suppress import Suppression
from compiler.ingraph.wrap import Surroundings, surround
from skerry.disk import Disk
from skerry.errors import CalibrationError
from skerry.execution.frames import read_frames
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.processing import Preprocessor, make_decoder
from skerry.manifest import InGraph, Interface, Limits

MAX_BOX_PX = 1.0
MAX_SCORE = 0.01
VERSION = 2  # of the pass


def of_size(samples: Samples, graph: InGraph | None) -> Samples:
    """The samples, of the frames that judge only those that the graph takes. Any frame may calibrate.

    Raises:
        CalibrationError: there is none.
    """
    if graph is None or graph.frame is None:
        return samples
    frames = read_frames([(s.path, s.index) for s in samples.report])
    fitting = [s for s, frame in zip(samples.report, frames, strict=True) if frame.shape[:2] == graph.frame]
    if not fitting:
        height, width = graph.frame
        raise CalibrationError(
            f"none of the {len(samples.report)} frames that judge is {width}x{height}, the size that [graph] frame "
            "says: give --calib a video or photos of that camera"
        )
    return msgspec.structs.replace(samples, report=fitting)


def around(graph: InGraph, interface: Interface, limits: Limits, backend: str) -> Surroundings:
    """What a variant's graph gets around it: suppression by fixed shapes wherever it is not ONNX Runtime that runs.

    The threshold is lowered by the proof's margin, but by half of itself at most: at zero every box is a candidate.
    """
    slack = min(limits.min_margin, interface.postprocess.min_score / 2)
    return Surroundings(graph, slack=slack, suppression=Suppression(fixed=backend != "onnxrt"))


def write(source: Path, target: Path, interface: Interface, surroundings: Surroundings, disk: Disk) -> None:
    """Writes ``source`` with its surroundings. Raises `CompileError`, as `surround` does."""
    made = surround(onnx.load(source), interface, surroundings)
    disk.replace(target, made.SerializeToString(deterministic=True))


def compare_in_graph(
    name: str, reference: Reference, plain: Path, drawn: Path, graph: InGraph, limits: Limits, backend: str | None
) -> Hop:
    """A model with its processing in the graph against the same model inside the runtime's own.

    Both run on their ``backend``, or, where this machine has it not (None), node by node as they stand. The answers
    are compared on the input that the graph made: an INT8 net may answer one grey level by a box that lies two pixels
    elsewhere, and that is not the processing's doing. The inputs are compared beside.
    """
    interface, entry = reference.interface, reference.interface.inputs[0]
    run, net = (literally(onnx.load(path)) if backend is None else on_backend(path, backend) for path in (drawn, plain))
    prepare, read = make_preprocessor(interface, graph), make_reader(interface, graph)
    usual, decode = Preprocessor(interface), make_decoder(interface)
    (taken,), _ = interface.tensors(graph)
    found, buffer, tensor = Difference(), np.zeros(taken.shape, taken.dtype), np.zeros(entry.shape, entry.dtype)
    for frame in reference.frames:
        geometry = prepare(frame, buffer)
        outputs = run(buffer)
        usual(frame, tensor)
        made = outputs.get(entry.name, buffer)
        found.input.add(tensor, made)
        answers = decode(net(made), geometry)
        found.add(answers, read(outputs, geometry), (frame.shape[0], frame.shape[1]), interface.postprocess)
    return _hop(name, found, limits.min_input_sqnr_db)


def _hop(name: str, found: Difference, limit_db: float) -> Hop:
    failed = None
    if found.input.db() < limit_db:
        failed = f"its input is not the runtime's: {found.input.db():.1f} dB, at least {limit_db:.0f} wanted"
    elif found.alone or found.box_px > MAX_BOX_PX:
        failed = (
            f"its answers are not the runtime's: {found.alone} of {found.answers} have no counterpart, boxes are up "
            f"to {found.box_px:.2f} px apart, at most {MAX_BOX_PX:.0f} wanted"
        )
    elif found.score > MAX_SCORE:
        failed = f"its scores are up to {found.score:.3f} from the runtime's, at most {MAX_SCORE} wanted"
    return Hop(
        name=name,
        frames=found.frames,
        sqnr_db=found.input.db(),
        limit_db=limit_db,
        same=found.answers - found.alone,
        decided=found.answers,
        failed=failed,
    )
