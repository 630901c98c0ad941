"""A real release that is built in milliseconds: a net that says which colour a frame has most of.

Needs numpy, onnx and skerry alone, so that the agent's tests run wherever the agent runs.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from safetensors.numpy import save

from skerry import signing
from skerry.bundle import pack
from skerry.disk import Disk
from skerry.execution.processing import Geometry, Preprocessor, make_decoder
from skerry.manifest import (
    FORMAT,
    Classification,
    File,
    InGraph,
    Interface,
    Limits,
    Manifest,
    Preprocess,
    Proof,
    Requires,
    Tensor,
    Variant,
    Weight,
    release_id,
)

SIZE = 8
COLOURS = ("red", "green", "blue")
KEY = ec.derive_private_key(0x5EA, ec.SECP256R1())
PREPROCESS = Preprocess(resize="stretch", scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
LIMITS = Limits()
OTHER_KEY = ec.derive_private_key(0xBAD, ec.SECP256R1())


def weights() -> np.ndarray:
    """[3 * SIZE * SIZE, 3]: each colour's score is four times its mean."""
    table = np.zeros((3, SIZE, SIZE, 3), np.float32)
    for channel in range(3):
        table[channel, :, :, channel] = 4.0 / (SIZE * SIZE)
    return table.reshape(-1, 3)


def model(
    before: list[onnx.NodeProto] = (), entry: str = "image", extra: list[onnx.TensorProto] = ()
) -> onnx.ModelProto:
    """image [1, 3, 8, 8] to scores [1, 3]; nodes ``before`` the net may make of the image what it reads, ``entry``."""
    nodes = [
        *before,
        helper.make_node("Flatten", [entry], ["flat"]),
        helper.make_node("MatMul", ["flat", "table"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weights(), "table"), *extra],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def endless(times: int = 2**40) -> onnx.ModelProto:
    """The same net behind a loop that multiplies by one ``times`` over: slow, or as good as endless."""
    return _looping([numpy_helper.from_array(np.array(times, np.int64), "times")], [])


def hangs_in_the_dark(times: int = 2**40) -> onnx.ModelProto:
    """The same net, but it hangs on a frame that is black: what no proof frame is."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Less", ["mean", "dark"], ["is_dark"]),
        helper.make_node("Cast", ["is_dark"], ["factor"], to=TensorProto.INT64),
        helper.make_node("Mul", ["many", "factor"], ["times"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(times, np.int64), "many"),
        numpy_helper.from_array(np.array(-0.25, np.float32), "dark"),
    ]
    return _looping(constants, nodes)


def _looping(constants: list[onnx.TensorProto], before: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The net behind a loop of "times" turns, which ``before`` or ``constants`` give."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
            helper.make_node("Mul", ["value", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
        ],
    )
    loop = helper.make_node("Loop", ["times", "yes", "image"], ["looped"], body=body)
    always = [
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(1.0, np.float32), "one"),
    ]
    return model([*before, loop], "looped", [*constants, *always])


def greedy(elements: int = 1 << 30) -> onnx.ModelProto:
    """The same net, but it fills ``elements`` floats on the way: four gigabytes as it stands."""
    nodes = [
        helper.make_node("Mul", ["image", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing"], ["nil"], keepdims=0),
        helper.make_node("Cast", ["nil"], ["nil_int"], to=TensorProto.INT64),
        helper.make_node("Add", ["many", "nil_int"], ["shape"]),  # depends on the input: cannot be folded away
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["image", "sum"], ["fed"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
        numpy_helper.from_array(np.array([elements], np.int64), "many"),
    ]
    return model(nodes, "fed", constants)


@dataclass
class Tiny:
    """What to build; each field may be bent to plant a fault."""

    name: str = "tiny"
    version: int = 1
    labels: list[str] = field(default_factory=lambda: list(COLOURS))
    variants: dict[str, onnx.ModelProto] = field(default_factory=lambda: {"fp32": model()})
    requires: dict[str, Requires] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    graphs: dict[str, InGraph] = field(default_factory=dict)
    preprocess: Preprocess = PREPROCESS
    limits: Limits = LIMITS
    key: ec.EllipticCurvePrivateKey = KEY
    frames: int = 6
    # Called with what the proof was made with, just before bundle.json is written from what it returns.
    bend: Callable[[dict], dict] = lambda fields: fields

    def interface(self) -> Interface:
        return Interface(
            format=FORMAT,
            name=self.name,
            version=self.version,
            task="classification",
            inputs=[Tensor("image", "float32", [1, 3, SIZE, SIZE])],
            outputs=[Tensor("scores", "float32", [1, 3])],
            preprocess=self.preprocess,
            postprocess=Classification(scores="scores", top=3),
            labels=self.labels,
        )

    def write(self, root: Path) -> str:
        """Writes the bundle as a directory and signs it. Returns the release id."""
        disk = Disk()
        disk.make_dirs(root)
        interface = self.interface()
        variants = [self._variant(root, name, built) for name, built in self.variants.items()]
        proof = self._proof(root, interface)
        files = [
            File(p, "application/octet-stream", (root / p).stat().st_size, digest(root / p))
            for p in sorted(_files(root))
        ]
        fields = {name: getattr(interface, name) for name in Interface.__struct_fields__}
        fields = self.bend({**fields, "variants": variants, "proof": proof, "files": files})
        raw = msgspec.json.encode(Manifest(**fields))
        (root / "bundle.json").write_bytes(raw)
        (root / "evidence").mkdir()
        (root / "evidence" / "compile.json").write_bytes(b"{}")
        sign(root, self.key)
        return release_id(raw)

    def pack(self, folder: Path) -> tuple[Path, str]:
        """Writes the bundle as a ``.skb`` file in ``folder``. Returns its path and the release id."""
        root = Path(tempfile.mkdtemp(prefix=f"{self.name}-{self.version}-", dir=folder))
        release = self.write(root)
        out = folder / f"{root.name}.skb"
        pack(root, out, Disk())
        return out, release

    def _variant(self, root: Path, name: str, built: onnx.ModelProto) -> Variant:
        folder = root / "variants" / name
        folder.mkdir(parents=True)
        copy = onnx.ModelProto()
        copy.CopyFrom(built)
        table = copy.graph.initializer[0]
        data = numpy_helper.to_array(table).tobytes()
        (folder / "weights.bin").write_bytes(data)
        table.raw_data = data
        set_external_data(table, "weights.bin", offset=0, length=len(data))
        table.ClearField("raw_data")
        (folder / "model.onnx").write_bytes(copy.SerializeToString())
        prefix = f"variants/{name}"
        weight = Weight("table", f"{prefix}/weights.bin", 0, len(data), hashlib.sha256(data).hexdigest())
        return Variant(
            id=name,
            backend=self.backends.get(name, "onnxrt"),
            precision="fp32" if name == "fp32" else "int8",
            requires=self.requires.get(name, Requires()),
            model=f"{prefix}/model.onnx",
            files=[f"{prefix}/model.onnx", f"{prefix}/weights.bin"],
            weights=[weight],
            graph=self.graphs.get(name),
        )

    def _proof(self, root: Path, interface: Interface) -> Proof:
        preprocess, decode = Preprocessor(interface), make_decoder(interface)
        frames, tensors, answers = {}, {}, []
        for index in range(self.frames):
            frame = coloured(index % 3, index)
            tensor = np.zeros((1, 3, SIZE, SIZE), np.float32)
            preprocess(frame, tensor)
            scores = tensor.reshape(1, -1) @ weights()
            frames[f"frame/{index}"] = frame
            tensors[f"output/scores/{index}"] = scores
            if index < 2:
                tensors[f"input/{index}"] = tensor
            geometry = Geometry(interface.preprocess, frame.shape[:2], (SIZE, SIZE))
            answers.append(decode({"scores": scores}, geometry))
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


def coloured(channel: int, seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    """A noisy frame with most of one colour."""
    frame = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    frame[:, :, channel] += 160
    return frame


def sign(root: Path, key: ec.EllipticCurvePrivateKey = KEY) -> None:
    """Signs whatever lies in ``root`` now."""
    digests = {path: digest(root / path) for path in _files(root) if path != "bundle.sig"}
    (root / "bundle.sig").write_bytes(signing.sign(root.name, digests, key))


def trusted() -> list[ec.EllipticCurvePublicKey]:
    return [KEY.public_key()]


def write_keys(folder: Path) -> Path:
    """Writes the public key that `Tiny` signs with; returns its path."""
    path = folder / "trusted.pub"
    path.write_bytes(signing.public_pem(KEY.public_key()))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(root: Path) -> list[str]:
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
