"""A real release of a detector, built in milliseconds: which quarter of a frame is red, green or blue.

Its four boxes are the quarters; each one's scores are the means of the colours in it. It finds what is drawn there, and
nothing in the dark.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save
from tiny import COLOURS, SIZE, Tiny

from compiler.graph.onnxfile import Probe
from skerry.execution.processing import Geometry, Preprocessor, make_decoder
from skerry.manifest import FORMAT, Detection, Interface, Preprocess, Proof, Tensor

QUARTERS = np.array(
    [[[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]], np.float32
)  # xyxy, fractions
_XML = """<annotation><filename>{name}</filename><object><name>{label}</name><bndbox>
<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"""


def model(order: tuple[int, int, int] = (0, 1, 2)) -> onnx.ModelProto:
    """image [1, 3, 8, 8] to boxes [1, 4, 4] and scores [1, 4, 3]; another ``order`` mistakes colours."""
    nodes = [
        helper.make_node("Gather", ["image", "order"], ["ordered"], axis=1),
        helper.make_node("AveragePool", ["ordered"], ["means"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["means", "rows"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("Identity", ["table"], ["boxes"]),
    ]
    constants = [
        numpy_helper.from_array(QUARTERS, "table"),
        numpy_helper.from_array(np.array(order, np.int64), "order"),
        numpy_helper.from_array(np.array([1, 3, 4], np.int64), "rows"),
    ]
    outputs = [("boxes", [1, 4, 4]), ("scores", [1, 4, 3])]
    graph = helper.make_graph(
        nodes,
        "boxed",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def drawn(quarter: int, channel: int, seed: int) -> np.ndarray:
    """A dark frame [40, 60, 3] with one quarter of a colour."""
    frame = np.random.default_rng(seed).integers(0, 40, (40, 60, 3), dtype=np.uint8)
    y, x = 20 * (quarter // 2), 30 * (quarter % 2)
    frame[y : y + 20, x : x + 30, channel] += 200
    return frame


def photos(folder: Path, count: int) -> Path:
    """Frames with VOC's XML beside them."""
    folder.mkdir(parents=True)
    for number in range(count):
        quarter, channel = number % 4, number % 3
        Image.fromarray(drawn(quarter, channel, number)).save(folder / f"{number:03}.png")
        x, y = 30 * (quarter % 2), 20 * (quarter // 2)
        said = _XML.format(name=f"{number:03}.png", label=COLOURS[channel], x=x, y=y, x1=x + 30, y1=y + 20)
        (folder / f"{number:03}.xml").write_text(said)
    return folder


@dataclass
class Boxed(Tiny):
    """As `Tiny`, with boxes for answers."""

    name: str = "boxed"
    variants: dict[str, onnx.ModelProto] = field(default_factory=lambda: {"fp32": model()})
    min_score: float = 0.5

    def interface(self) -> Interface:
        return Interface(
            format=FORMAT,
            name=self.name,
            version=self.version,
            task="detection",
            inputs=[Tensor("image", "float32", [1, 3, SIZE, SIZE])],
            outputs=[Tensor("boxes", "float32", [1, 4, 4]), Tensor("scores", "float32", [1, 4, 3])],
            preprocess=Preprocess(resize="stretch", scale=1 / 255),
            postprocess=Detection(boxes="boxes", scores="scores", min_score=self.min_score),
            labels=self.labels,
        )

    def _proof(self, root: Path, interface: Interface) -> Proof:
        preprocess, decode = Preprocessor(interface), make_decoder(interface)
        run, frames, tensors, answers = Probe(model(), ["boxes", "scores"], threads=1), {}, {}, []
        for index in range(self.frames):
            frame = drawn(index % 4, index % 3, index)
            tensor = np.zeros((1, 3, SIZE, SIZE), np.float32)
            preprocess(frame, tensor)
            outputs = {name: np.array(value) for name, value in run(tensor)}
            frames[f"frame/{index}"] = frame
            tensors |= {f"output/{name}/{index}": value for name, value in outputs.items()}
            if index < 2:
                tensors[f"input/{index}"] = tensor
            answers.append(decode(outputs, Geometry(interface.preprocess, frame.shape[:2], (SIZE, SIZE))))
        (root / "proof").mkdir()
        (root / "proof" / "frames.safetensors").write_bytes(save(frames))
        (root / "proof" / "reference.safetensors").write_bytes(save(tensors))
        (root / "proof" / "answers.json").write_bytes(msgspec.json.encode(answers))
        return Proof(
            count=self.frames,
            inputs=2,
            frames="proof/frames.safetensors",
            reference="proof/reference.safetensors",
            answers="proof/answers.json",
            limits=self.limits,
            licence="made by a test",
            consent="nobody is in it",
        )
