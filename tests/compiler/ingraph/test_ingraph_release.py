"""A release whose graph takes frames: it proves itself as any other, and what is wrong in its graph does not pass."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
import tiny
from PIL import Image
from safetensors.numpy import save_file

from compiler.data.samples import collect
from compiler.evaluation.compare import Reference
from compiler.ingraph.release import around, compare_in_graph, of_size, write
from compiler.ingraph.wrap import Surroundings, surround
from compiler.sources.recipe import GraphSettings
from edge_agent.mailbox import Captured
from edge_agent.vision import ActiveModel
from skerry.clock import SystemClock
from skerry.config import convert
from skerry.disk import Disk
from skerry.errors import BackendError, CalibrationError, ConfigError
from skerry.execution.backend import load_variant
from skerry.execution.frames import read_frames
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.processing import Preprocessor, make_decoder
from skerry.execution.prove import measure
from skerry.manifest import FLOOR, InGraph, Limits, Manifest

CLOCK = SystemClock()
GRAPHS = {
    "frames": InGraph(frame=(20, 30)),
    "answers": InGraph(answers=True),
    "both": InGraph(frame=(20, 30), answers=True),
}
every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def released(folder, graph, described=None, **tiny_fields):
    """Writes a release of two variants, one plain and one with the graph; ``described`` bends what is drawn."""
    small = tiny.Tiny(**tiny_fields)
    described = described or small.interface()
    drawn = surround(tiny.model(), described, Surroundings(graph))
    small.variants, small.graphs = {"fp32": tiny.model(), "drawn": drawn}, {"drawn": graph}
    small.write(folder / "release")
    return folder / "release"


def proved(root, variants=("fp32", "drawn")):
    return measure(root, variants, FLOOR, threads=1, clock=CLOCK)


@every_graph
def test_it_proves_itself_beside_the_plain_one(tmp_path, graph):
    plain, drawn = proved(released(tmp_path, graph))
    assert (plain.refused, drawn.refused) == (None, None)
    assert drawn.input_sqnr_db > 60
    assert (drawn.same, drawn.decided) == (plain.same, plain.decided)


@pytest.mark.parametrize("bent", [{"mean": (0.3, 0.2, 0.1)}, {"color": "bgr"}, {"std": (1.0,)}], ids=str)
def test_a_wrong_preprocessing_in_the_graph_is_seen_at_the_nets_input(tmp_path, bent):
    right = tiny.Tiny().interface()
    wrong = msgspec.structs.replace(right, preprocess=msgspec.structs.replace(right.preprocess, **bent))
    plain, drawn = proved(released(tmp_path, GRAPHS["both"], wrong))
    assert plain.refused is None
    assert "its pre-processing is not the reference's" in drawn.refused


def test_wrong_answers_beside_right_outputs_are_seen(tmp_path):
    """The classes of the answers in reverse, everything else right."""
    root = released(tmp_path, GRAPHS["both"])
    path = root / "variants/drawn/model.onnx"
    model = onnx.load(path, load_external_data=False)
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.output[0] == "answer_classes")
    reverse = onnx.helper.make_node("Sub", ["two", nodes[at].input[0]], ["answer_classes"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "two"))
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], reverse, *nodes[at + 1 :]])
    path.write_bytes(model.SerializeToString())
    fit_digests(root)

    _, drawn = proved(root)

    assert "its answers differ from fp32" in drawn.refused


def fit_digests(root):
    path = root / "bundle.json"
    fields = msgspec.json.decode(path.read_bytes())
    for file in fields["files"]:
        file["size"], file["sha256"] = (root / file["path"]).stat().st_size, tiny.digest(root / file["path"])
    path.write_bytes(msgspec.json.encode(fields))


def test_proof_frames_of_another_size_refuse_it(tmp_path):
    with pytest.raises(BackendError, match="takes frames of 31x20, this one has 30x20"):
        proved(released(tmp_path, InGraph(frame=(20, 31))))


def test_a_manifest_that_promises_other_than_the_graph_does_is_refused(tmp_path):
    root = released(tmp_path, GRAPHS["both"])
    raw = (root / "bundle.json").read_bytes()
    fields = msgspec.json.decode(raw)
    fields["variants"][1]["graph"] = None  # what an older Skerry sees
    (root / "bundle.json").write_bytes(msgspec.json.encode(fields))
    with pytest.raises(BackendError, match=r"expected inputs .*'image'.*frames"):
        proved(root)


@every_graph
def test_the_worker_takes_a_frame_through_either_to_the_same_answers(tmp_path, graph):
    root = released(tmp_path, graph)
    manifest = Manifest.parse((root / "bundle.json").read_bytes())
    plain, drawn = (load_variant(root, manifest, v, threads=1) for v in manifest.variants)
    usual = ActiveModel("", "fp32", plain, Preprocessor(manifest), make_decoder(manifest))
    prepare, read = make_preprocessor(manifest, graph), make_reader(manifest, graph)
    whole = ActiveModel("", "drawn", drawn, prepare, read)

    for number in range(3):
        frame = Captured("camera", number, CLOCK.monotonic(), CLOCK.utc(), tiny.coloured(number, number))
        ours, theirs = usual(frame, lambda _: None), whole(frame, lambda _: None)
        assert [a.label for a in theirs] == [a.label for a in ours]
        assert [a.score for a in theirs] == pytest.approx([a.score for a in ours], abs=1e-4)


def test_only_frames_of_the_cameras_size_judge(tmp_path):
    for number in range(40):
        shape = (20, 30) if number % 2 else (24, 30)
        Image.fromarray(tiny.coloured(number % 3, number, *shape)).save(tmp_path / f"{number}.png")
    samples = collect([tmp_path])

    chosen = of_size(samples, InGraph(frame=(20, 30)))

    assert 0 < len(chosen.report) < len(samples.report)
    assert chosen.calibration == samples.calibration
    assert {f.shape for f in read_frames([(s.path, s.index) for s in chosen.report])} == {(20, 30, 3)}
    assert of_size(samples, InGraph(answers=True)) == of_size(samples, None) == samples
    with pytest.raises(CalibrationError, match="is 99x98, the size that"):
        of_size(samples, InGraph(frame=(98, 99)))


# --- the compiler's own look at it ---------------------------------------------------------------------------------


def reference_of(folder, frames):
    """What fp32 made of some frames, as the child writes it."""
    described, tensors = tiny.Tiny().interface(), {}
    for index, frame in enumerate(frames):
        tensor = np.zeros((1, 3, tiny.SIZE, tiny.SIZE), np.float32)
        Preprocessor(described)(frame, tensor)
        tensors[f"input/{index}"], tensors[f"output/scores/{index}"] = tensor, tensor.reshape(1, -1) @ tiny.weights()
    save_file(tensors, folder / "reference.safetensors")
    return Reference(folder / "reference.safetensors", frames, described, 0.2)


def looked_at(folder, drawn):
    """The hop of a model beside `tiny`'s."""
    reference = reference_of(folder, [tiny.coloured(number % 3, number) for number in range(6)])
    onnx.save(tiny.model(), folder / "plain.onnx")
    onnx.save(drawn, folder / "drawn.onnx")
    graph = GRAPHS["both"]
    return compare_in_graph(
        "in the graph", reference, folder / "plain.onnx", folder / "drawn.onnx", graph, Limits(), "onnxrt"
    )


def test_the_compiler_holds_a_drawn_graph_to_the_runtime(tmp_path):
    described = tiny.Tiny().interface()
    onnx.save(tiny.model(), tmp_path / "net.onnx")
    surroundings = around(GRAPHS["both"], described, Limits(), "onnxrt")
    write(tmp_path / "net.onnx", tmp_path / "whole.onnx", described, surroundings, Disk())

    hop = looked_at(tmp_path, onnx.load(tmp_path / "whole.onnx"))

    assert (hop.failed, hop.same, hop.decided, hop.frames) == (None, 18, 18, 6)
    assert hop.sqnr_db > 60


@pytest.mark.parametrize(
    ("bent", "why"), [({"pad_value": 1, "std": (0.4,)}, "its input is not the runtime's"), ({"color": "bgr"}, "input")]
)
def test_the_compiler_sees_a_graph_that_was_drawn_wrong(tmp_path, bent, why):
    right = tiny.Tiny().interface()
    wrong = msgspec.structs.replace(right, preprocess=msgspec.structs.replace(right.preprocess, **bent))
    hop = looked_at(tmp_path, surround(tiny.model(), wrong, Surroundings(GRAPHS["both"])))
    assert why in hop.failed


def test_the_compiler_sees_scores_that_were_drawn_wrong(tmp_path):
    right = tiny.Tiny().interface()
    wrong = msgspec.structs.replace(right, postprocess=msgspec.structs.replace(right.postprocess, activation="sigmoid"))
    hop = looked_at(tmp_path, surround(tiny.model(), wrong, Surroundings(GRAPHS["both"])))
    assert "its scores are up to" in hop.failed


def test_a_recipe_asks_for_it_and_an_unknown_key_is_refused():
    asked = convert({"frame": [1080, 1920], "answers": True}, GraphSettings, "recipe.toml")
    assert msgspec.convert(asked, InGraph, from_attributes=True) == InGraph(frame=(1080, 1920), answers=True)
    for wrong in ({"frames": [1080, 1920]}, {"frame": [1080]}, {"frame": [0, 1920]}, {"answers": "yes"}):
        with pytest.raises(ConfigError, match=r"recipe\.toml"):
            convert(wrong, GraphSettings, "recipe.toml [graph]")
