"""Faults on the way from torch to ONNX, and in what is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import helper

from benchmarks import nets
from benchmarks.faults_case import Injection, Judged, bent, export_hop, nodes, put, raised, tensor
from benchmarks.faults_nets import FOLDER, LOST, Net, loaded, net
from compiler.evaluation import batches
from compiler.host import open_host
from compiler.sources import recipe

_FACE = Path("../shared/data/face/version-slim-320.onnx")


def _exported(name: str, change: Callable[[onnx.ModelProto], None]) -> Judged:
    """An exporter that writes something else."""
    subject = net(name)
    run = loaded(bent(onnx.load(subject.exported), change))
    return Judged(subject.judge(run), "it does not load" if run is None else export_hop(subject, run))


def _of_other_weights(name: str, change: Callable[[dict[str, object]], None]) -> Judged:
    """A file that was exported from other weights than the reference has."""
    subject = net(name)
    weights = _weights(subject, change)
    source = msgspec.structs.replace(subject.job.source, weights=weights)
    with open_host(source, lambda _text: None) as host:
        other = Net(name, replace(subject.job, source=source), host, subject.truth)
        run = loaded(onnx.load(other.exported))
    assert run is not None
    return Judged(subject.judge(run), export_hop(subject, run))


def _weights(subject: Net, change: Callable[[dict[str, object]], None]) -> Path:
    import torch  # noqa: PLC0415 - for these alone

    state = torch.load(subject.job.source.weights, weights_only=True)
    change(state)
    torch.save(state, FOLDER / "other.pth")
    return FOLDER / "other.pth"


def _statistics(state: dict[str, object]) -> None:
    """Those of one picture, by running the net in training mode on it."""
    import torch  # noqa: PLC0415 - for this alone

    from benchmarks.train import build  # noqa: PLC0415

    subject = net("resnet")
    made = build(nets.folder("fashion_resnet"))
    made.load_state_dict(state)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    made.train()(torch.from_numpy(subject.reference.input(0).copy()))
    state.update(made.state_dict())


def _epsilon(state: dict[str, object]) -> None:
    for name in [n for n in state if n.endswith("running_var")]:
        state[name] = state[name] + 1e-3 - 1e-5  # type: ignore[operator]


def _earlier(state: dict[str, object]) -> None:
    """An earlier checkpoint is this one with its last steps missing: here, with other steps taken."""
    import torch  # noqa: PLC0415 - for this alone

    torch.manual_seed(1)
    for name, value in state.items():
        if name.endswith("weight") and value.ndim > 1:  # type: ignore[attr-defined]
            state[name] = value + 0.5 * value.std() * torch.randn_like(value)  # type: ignore[attr-defined]


def _one_bias(model: onnx.ModelProto) -> None:
    for name in ("blocks.0.conv1.weight_bias", "blocks.2.conv1.weight_bias"):
        bias = tensor(model, name)
        put(model, name, np.full_like(bias, bias[0]))


def _tanh(model: onnx.ModelProto) -> None:
    for node in nodes(model, "Gelu"):
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("approximate", "tanh"))


def _transposed(model: onnx.ModelProto) -> None:
    (name,) = [n.input[1] for n in nodes(model, "MatMul") if n.input[1] == "val_36"]
    put(model, name, tensor(model, name).T)


def _axis(model: onnx.ModelProto) -> None:
    for node in nodes(model, "Softmax"):
        node.attribute[0].i = 1


def _slope(model: onnx.ModelProto) -> None:
    for node in nodes(model, "HardSwish"):
        inner, (value,), (out,) = f"{node.output[0]}_gate", node.input, node.output
        place = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        model.graph.node.insert(place, helper.make_node("Mul", [value, inner], [out], f"{out}_mul"))
        model.graph.node.insert(place, helper.make_node("HardSigmoid", [value], [inner], inner))


def _baked() -> Judged:
    subject = net("vit")

    def bake(model: onnx.ModelProto) -> None:
        for name in {n.input[1] for n in nodes(model, "Reshape")}:
            shape = tensor(model, name)
            shape[shape == -1] = 1  # what the tracer saw
            put(model, name, shape)

    path = FOLDER / "baked.onnx"
    onnx.save(bent(onnx.load(subject.exported), bake), path)
    assert subject.job.recipe.input.batch is not None
    return Judged(LOST, batches.compare_batches("fp32", path, subject.reference, subject.job.recipe.input.batch).failed)


# --- what is loaded ---------------------------------------------------------------------------------------------------


def _foreign(write: Callable[[Path], None]) -> Judged:
    """A foreign file, read as `skerry compile` reads it. The sound one must load, or a refusal would say nothing."""
    sound = nets.folder("face") / "net.onnx"
    sound.write_bytes(_FACE.read_bytes())
    if why := raised(lambda: _load(sound)):
        raise SystemExit(f"the sound file is refused: {why}")
    write(sound)
    return Judged(None, raised(lambda: _load(sound)))


def _load(file: Path) -> None:
    with open_host(recipe.load(str(file), recipe.Overrides()), lambda _text: None) as host:
        host.load()


def _twice(path: Path) -> None:
    model = onnx.load(_FACE)
    first, second = model.graph.initializer[0], onnx.TensorProto()
    second.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(first), first.name))
    model.graph.initializer.append(second)
    path.write_bytes(model.SerializeToString())


def _cut(path: Path) -> None:
    model = onnx.load(_FACE)
    onnx.save(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    data = path.with_name("net.bin")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def _not_finite() -> Judged:
    subject = net("resnet")

    def spoil(state: dict[str, object]) -> None:
        state["blocks.2.conv1.weight"][0, 0, 0, 0] = float("nan")  # type: ignore[index]

    source = msgspec.structs.replace(subject.job.source, weights=_weights(subject, spoil))
    with open_host(source, lambda _text: None) as host:
        return Judged(LOST, raised(host.load))


FAULTS: dict[str, Injection] = {
    "batch-norm-of-the-batch": lambda: _of_other_weights("resnet", _statistics),
    "bias-of-one-value": lambda: _exported("resnet", _one_bias),
    "gelu-by-tanh": lambda: _exported("vit", _tanh),
    "gemm-transposed": lambda: _exported("vit", _transposed),
    "softmax-over-another-axis": lambda: _exported("vit", _axis),
    "hard-swish-of-another-slope": lambda: _exported("clothing", _slope),
    "batch-norm-epsilon": lambda: _of_other_weights("resnet", _epsilon),
    "another-checkpoint": lambda: _of_other_weights("resnet", _earlier),
    "batch-baked-in": _baked,
    "initializer-twice": lambda: _foreign(_twice),
    "external-data-cut-off": lambda: _foreign(_cut),
    "weights-not-finite": _not_finite,
}
