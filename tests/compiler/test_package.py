"""A release is put together: the layout of its models, its proof, its papers, its signature."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import drawn
import msgspec
import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, numpy_helper
from pictures import noise
from safetensors import safe_open
from safetensors.numpy import save_file

from compiler.evaluation.compare import Reference
from compiler.graph import onnxfile
from compiler.package import ReleaseFolder, choose_proof_frames, sbom
from compiler.targets.target import VariantPlan
from skerry import signing
from skerry.bundle import open_bundle, read_file, read_manifest
from skerry.disk import Disk
from skerry.errors import BundleError, CompileError
from skerry.execution.onnxrt import OnnxrtBackend
from skerry.manifest import (
    Accelerator,
    Detection,
    Interface,
    Limits,
    Manifest,
    Preprocess,
    Requires,
    release_id,
)
from skerry.wire import Answer

KEY = ec.derive_private_key(0x5C0, ec.SECP256R1())
LIMITS = Limits()
SIZE = 16


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "z.weight": random.normal(size=(64, 3 * SIZE * SIZE)).astype(np.float32),
        "a.weight": random.normal(size=(64, 64)).astype(np.float32),
        "m.bias": random.normal(size=(64,)).astype(np.float32),  # small: stays in the graph
    }


def net() -> onnx.ModelProto:
    """image [1, 3, 16, 16] to scores [1, 64], with everything that an exporter leaves lying around."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "z.weight", "m.bias"], ["first"], transB=1),
        helper.make_node("MatMul", ["first", "a.weight"], ["scores"], doc_string="File /home/me/net.py, line 7"),
    ]
    for node in nodes:
        node.metadata_props.append(onnx.StringStringEntryProto(key="stack", value="File /home/me/net.py"))
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(value, name) for name, value in weights().items()],
        doc_string="made in /home/me",
        value_info=[helper.make_tensor_value_info("first", TensorProto.FLOAT, [1, 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.producer_name, model.producer_version = "an exporter", "1.2.3 in /home/me"
    model.metadata_props.append(onnx.StringStringEntryProto(key="path", value="/home/me"))
    return model


# The layout of a model


def test_a_model_is_a_small_graph_beside_one_file_of_weights_in_one_order(tmp_path: Path) -> None:
    listed = onnxfile.write(net(), tmp_path, Disk(), "variants/fp32")

    assert [w.name for w in listed] == ["a.weight", "z.weight"]
    assert (tmp_path / "model.onnx").stat().st_size < 4096
    blob = (tmp_path / "weights.bin").read_bytes()
    for weight in listed:
        assert weight.file == "variants/fp32/weights.bin"
        assert weight.offset % 4096 == 0
        raw = blob[weight.offset : weight.offset + weight.size]
        assert hashlib.sha256(raw).hexdigest() == weight.sha256
        assert np.array_equal(np.frombuffer(raw, np.float32), weights()[weight.name].ravel())


def test_a_model_in_that_layout_runs_as_before(tmp_path: Path) -> None:
    onnxfile.write(net(), tmp_path, Disk(), "variants/fp32")
    image = np.random.default_rng(2).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)

    backend = OnnxrtBackend(tmp_path / "model.onnx", threads=1)
    backend.inputs["image"][...] = image

    table = weights()
    expected = (image.reshape(1, -1) @ table["z.weight"].T + table["m.bias"]) @ table["a.weight"]
    assert np.allclose(backend.run()["scores"], expected, rtol=1e-4, atol=1e-3)


def test_no_trace_of_the_machine_it_was_made_on_is_shipped(tmp_path: Path) -> None:
    onnxfile.write(net(), tmp_path, Disk(), "variants/fp32")

    for file in tmp_path.iterdir():
        assert b"/home/me" not in file.read_bytes()
        assert b"exporter" not in file.read_bytes()


def test_the_order_in_which_tensors_were_made_leaves_no_trace(tmp_path: Path) -> None:
    other = net()
    tensors = list(other.graph.initializer)
    del other.graph.initializer[:]
    other.graph.initializer.extend(tensors[::-1])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    one = onnxfile.write(net(), tmp_path / "one", Disk(), "v")
    two = onnxfile.write(other, tmp_path / "two", Disk(), "v")

    assert one == two
    assert (tmp_path / "one" / "weights.bin").read_bytes() == (tmp_path / "two" / "weights.bin").read_bytes()


def test_an_update_of_one_tensor_moves_that_one_alone(tmp_path: Path) -> None:
    newer = net()
    table = next(t for t in newer.graph.initializer if t.name == "a.weight")
    table.CopyFrom(numpy_helper.from_array(weights()["a.weight"] * 2, "a.weight"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    before = {w.sha256 for w in onnxfile.write(net(), tmp_path / "one", Disk(), "v")}
    after = {w.sha256 for w in onnxfile.write(newer, tmp_path / "two", Disk(), "v")}

    assert len(after - before) == 1


# The proof's frames


def classifier() -> Interface:
    plain = drawn.interface({"scores": [1, 64]}, Preprocess(resize="stretch"), size=(SIZE, SIZE))
    return msgspec.structs.replace(plain, name="net", version=3)


def detector() -> Interface:
    answers = Detection(boxes="boxes", scores="scores", background=0, min_score=0.5)
    outputs = {"scores": [1, 9, 2], "boxes": [1, 9, 4]}
    return drawn.interface(outputs, Preprocess(resize="stretch"), answers, (SIZE, SIZE), ["nothing", "face"])


def sure(label: str = "cat") -> list[Answer]:
    return [Answer(label, 0.9), Answer("dog", 0.1)]


def torn() -> list[Answer]:
    return [Answer("cat", 0.45), Answer("dog", 0.44)]


def a_face(score: float) -> list[Answer]:
    return [Answer("face", score, (0.1, 0.1, 0.5, 0.5))]


def test_only_frames_that_the_reference_is_sure_of_become_the_proof() -> None:
    answers = [torn(), sure(), torn(), sure(), sure()]

    assert choose_proof_frames(classifier(), answers, LIMITS, 16) == [1, 3, 4]


def test_the_proof_is_spread_over_everything_there_is() -> None:
    chosen = choose_proof_frames(classifier(), [sure()] * 64, LIMITS, 16)

    assert len(chosen) == len(set(chosen)) == 16
    assert (chosen[0], chosen[-1]) == (0, 63)
    assert set(np.diff(chosen)) <= {4, 5}


def test_every_label_that_was_answered_is_in_the_proof_as_often_as_any_other() -> None:
    answers = [sure("cat")] * 30 + [sure("dog")] * 2 + [sure("cat")] * 8

    chosen = choose_proof_frames(classifier(), answers, LIMITS, 8)

    assert len(chosen) == 8
    assert {30, 31} < set(chosen)
    assert {0, 39} < set(chosen)


def test_more_labels_than_frames_are_spread() -> None:
    answers = [sure(str(number)) for number in range(32)]

    chosen = choose_proof_frames(classifier(), answers, LIMITS, 8)

    assert len(chosen) == 8
    assert (chosen[0], chosen[-1]) == (0, 31)


def test_a_detectors_proof_holds_frames_with_nothing_in_them_too() -> None:
    answers = [a_face(0.9)] * 20 + [[]] * 20 + [a_face(0.55)] * 4

    chosen = choose_proof_frames(detector(), answers, LIMITS, 8)

    assert len(chosen) == 8
    assert sum(20 <= index < 40 for index in chosen) == 2
    assert all(index < 40 for index in chosen)  # a face that is barely one proves nothing


@pytest.mark.parametrize("interface", [classifier(), detector()], ids=["classifier", "detector"])
def test_a_model_that_is_sure_of_nothing_cannot_be_proved(interface: Interface) -> None:
    unsure = torn() if interface.task == "classification" else a_face(0.51)

    with pytest.raises(CompileError, match=r"sure of nothing in 5 frames \(margin 0\.20\).*--calib"):
        choose_proof_frames(interface, [unsure] * 5, LIMITS, 16)


# The release


def release(root: Path, folder: Path) -> str:
    """Fills and signs a release of one variant; returns its id."""
    frames = noise(6, (20, 24))
    scores = np.zeros((1, 64), np.float32)
    scores[0, 5] = 9.0
    tensors = {f"input/{i}": np.full((1, 3, SIZE, SIZE), i / 7, np.float32) for i in range(6)}
    save_file(tensors | {f"output/scores/{i}": scores for i in range(6)}, folder / "reference.safetensors")
    reference = Reference(folder / "reference.safetensors", frames, classifier(), LIMITS.min_margin)
    onnx.save(net(), folder / "model.onnx")

    made = ReleaseFolder(root, Disk())
    plan = VariantPlan(id="fp32", backend="onnxrt", precision="fp32", source="a test")
    variant = made.add_variant(plan, Requires(), folder / "model.onnx")
    proof = made.add_proof([0, 2, 3, 4, 5], reference, LIMITS, "CC0-1.0", "nobody is in it")
    raw = made.finish(classifier(), [variant], proof)
    made.write("evidence/compile.json", b"{}")
    made.sign("net@3", KEY)
    return release_id(raw)


@pytest.mark.parametrize("engine", [False, True], ids=["a Jetson's", "a card's"])
def test_a_tensorrt_variant_ships_its_graph_or_its_engine_and_how_it_is_built(tmp_path: Path, *, engine: bool) -> None:
    made = ReleaseFolder(tmp_path / "bundle", Disk())
    plan = VariantPlan(id="trt-fp16", backend="tensorrt", precision="fp16", source="a test")
    requires = Requires(accelerators=[Accelerator(sm="8.7", at_least="10.3", below="11")])
    onnx.save(net(), tmp_path / "model.onnx")
    (tmp_path / "build.json").write_bytes(b'{"network": "strongly typed"}')
    if engine:
        (tmp_path / "model.engine").write_bytes(b"a plan")

    variant = made.add_variant(plan, requires, tmp_path / "model.onnx")

    shipped = {"model.engine", "build.json"} if engine else {"model.onnx", "weights.bin", "build.json"}
    folder = tmp_path / "bundle" / "variants" / "trt-fp16"
    assert {path.name for path in folder.iterdir()} == shipped
    assert set(variant.files) == {f"variants/trt-fp16/{name}" for name in shipped}
    assert variant.model == variant.files[0]
    assert Path(variant.model).name == ("model.engine" if engine else "model.onnx")
    assert variant.requires == requires
    assert all(weight.file in variant.files for weight in variant.weights)


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path / "bundle", release(tmp_path / "bundle", tmp_path)


def test_a_release_is_signed_whole_and_named_by_its_manifest(built: tuple[Path, str]) -> None:
    root, release_name = built

    bundle = open_bundle(root, [KEY.public_key()])

    assert bundle.release == release_name == hashlib.sha256((root / "bundle.json").read_bytes()).hexdigest()
    assert bundle.manifest.version == 3
    assert "evidence/compile.json" in bundle.signed
    files = {file.path: file for file in bundle.manifest.files}
    assert "evidence/compile.json" not in files  # statements about a release are no part of its name
    for path, file in files.items():
        assert file.size == (root / path).stat().st_size


def test_a_packed_release_is_the_same_release(built: tuple[Path, str], tmp_path: Path) -> None:
    root, release_name = built
    out = tmp_path / "net.skb"

    ReleaseFolder(root, Disk()).pack(out)

    assert open_bundle(out, [KEY.public_key()]).release == release_name
    assert read_file(out, "variants/fp32/weights.bin") == (root / "variants/fp32/weights.bin").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


@pytest.mark.parametrize("path", ["variants/fp32/weights.bin", "proof/answers.json", "evidence/compile.json"])
def test_no_file_of_a_release_can_be_changed_afterwards(built: tuple[Path, str], path: str) -> None:
    root, _ = built
    raw = bytearray((root / path).read_bytes())
    raw[0] ^= 1
    (root / path).write_bytes(raw)

    with pytest.raises(BundleError):
        open_bundle(root, [KEY.public_key()])


def test_the_proof_holds_raw_frames_and_what_the_reference_made_of_them(built: tuple[Path, str]) -> None:
    root, _ = built
    raw, _ = read_manifest(root)
    proof = Manifest.parse(raw).proof

    assert (proof.count, proof.inputs) == (5, 4)
    with safe_open(root / proof.frames, "np") as frames, safe_open(root / proof.reference, "np") as reference:
        assert sorted(frames.keys()) == [f"frame/{i}" for i in range(5)]
        assert frames.get_tensor("frame/4").shape == (20, 24, 3)
        assert frames.get_tensor("frame/4").dtype == np.uint8
        names = [f"input/{i}" for i in range(4)] + [f"output/scores/{i}" for i in range(5)]
        assert sorted(reference.keys()) == sorted(names)
        assert reference.get_tensor("input/1").mean() == pytest.approx(2 / 7, abs=1e-3)  # the frames chosen, in order
    answers = json.loads((root / proof.answers).read_text())
    assert [frame[0]["label"] for frame in answers] == ["class 5"] * 5


def test_the_same_parts_make_the_same_release(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    one = release(tmp_path / "one" / "bundle", tmp_path / "one")
    two = release(tmp_path / "two" / "elsewhere", tmp_path / "two")

    assert one == two


def test_any_key_that_signs_is_verified_by_its_own_public_half_alone(built: tuple[Path, str]) -> None:
    root, _ = built
    stranger = ec.derive_private_key(0xBAD, ec.SECP256R1()).public_key()

    with pytest.raises(BundleError, match="trust"):
        open_bundle(root, [stranger])
    assert open_bundle(root, [stranger, KEY.public_key()]).signer
    assert b"BEGIN PUBLIC KEY" in signing.public_pem(KEY.public_key())


def test_the_bill_of_materials_names_tools_weights_and_the_release(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")

    document = json.loads(sbom("ab" * 32, classifier(), {"torch": "2.13.0", "onnx": "1.23"}, file))

    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    component = document["metadata"]["component"]
    assert (component["type"], component["name"], component["version"]) == ("machine-learning-model", "net", "3")
    assert component["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    parts = {part["name"]: part for part in document["components"]}
    assert parts["torch"]["purl"] == "pkg:pypi/torch@2.13.0"
    assert parts["w.pth"]["hashes"][0]["content"] == hashlib.sha256(b"weights").hexdigest()
