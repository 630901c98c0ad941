"""Every kind of source, by the real command: what is compiled, what is refused, and what never runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import CONV, HEAD, conv, graph, head, held, node, value
from safetensors.numpy import load_file
from shell import STRANGERS, Said, Shell, photograph

from skerry import signing
from skerry.bundle import open_bundle, read_file

pytestmark = pytest.mark.slow

PLAIN_TARGET = """
description = "fp32 alone: what is tested is where it comes from"
arch = []
[[variant]]
id = "fp32"
backend = "onnxrt"
precision = "fp32"
source = "a test"
"""

# Stands before the real torch in the search path: whoever imports it leaves a mark and fails.
NO_TORCH = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
raise ImportError("torch was imported")
"""

MAKE = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from net import build
torch.manual_seed(1)
net = build().eval()
with torch.no_grad():
    net.head.weight.mul_(40)  # untrained, but sure of itself: a proof needs decided answers
folder, image = Path(sys.argv[2]), torch.zeros(2, 3, 32, 32)
from safetensors.torch import save_file
save_file(net.state_dict(), folder / "w.safetensors")
save_file({"w": torch.ones(2)}, folder / "other.safetensors")
torch.save(net.state_dict(), folder / "w.pth")
varies = ({0: torch.export.Dim("any", min=1, max=64)},)
torch.export.save(torch.export.export(net, (image,), dynamic_shapes=varies), folder / "colours.pt2")
torch.export.save(torch.export.export(net.train(), (image,), dynamic_shapes=varies), folder / "training.pt2")
torch.jit.save(torch.jit.trace(net.eval(), image), str(folder / "script.pt"))
torch.onnx.export(net, (image[:1],), str(folder / "colours.onnx"), opset_version=11, input_names=["x:0"],
                  dynamic_axes={"x:0": {0: "N"}}, dynamo=False)
"""


@dataclass(frozen=True)
class Shelf:
    """A net in every form, photos, and a shell."""

    shell: Shell
    folder: Path

    def compile(self, what: object, *more: object) -> Said:
        words = [
            "--calib",
            self.folder / "photos",
            "--work",
            self.folder / "work",
            "--target",
            self.folder / "fp32.toml",
        ]
        return self.shell.skerry("compile", what, *words, *more)

    def evidence(self, bundle: Path) -> dict:
        return json.loads(read_file(bundle, "evidence/compile.json"))

    def manifest(self, bundle: Path):
        return open_bundle(bundle, [signing.load_public_key(self.shell.public_key)]).manifest


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    shell = Shell(folder / "home")
    shutil.copytree(STRANGERS / "colours", folder / "colours", ignore=shutil.ignore_patterns("__pycache__"))
    shell.python(MAKE, folder / "colours", folder)
    photograph(folder / "photos", 140)
    (folder / "fp32.toml").write_text(PLAIN_TARGET)
    return Shelf(shell, folder)


@pytest.fixture
def no_torch(tmp_path, monkeypatch):
    """Makes torch fail in every process that is started from now on; the file that says that one tried."""
    folder = tmp_path / "no_torch"
    folder.mkdir()
    (folder / "torch.py").write_text(NO_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "imported"


# An ONNX file


def test_an_onnx_file_is_compiled_without_torch_and_every_assumption_is_said(shelf, tmp_path, no_torch):
    out = tmp_path / "net.skb"

    said = shelf.compile(shelf.folder / "colours.onnx", "-o", out)

    assert said.code == 0, said.err
    assert not no_torch.exists()
    told = said.out
    assert "assumed: no recipe.toml beside colours.onnx: a classifier of RGB images, input 1x3x32x32 (nchw)" in told
    assert "assumed: pre-processing: shorter side to 37, centre crop, ImageNet's mean and std" in told
    evidence = shelf.evidence(out)
    assert [hop["name"] for hop in evidence["hops"]] == ["pre-processing", "original ONNX → adopted"]
    assert {t["model"] for t in evidence["timings"]} == {"original ONNX", "fp32"}
    assert "file colours.onnx" in evidence["lineage"]
    assert "code" not in evidence["lineage"]
    manifest = shelf.manifest(out)
    assert (manifest.name, manifest.batch) == ("colours", None)
    assert [(t.name, t.shape) for t in [*manifest.inputs, *manifest.outputs]] == [
        ("image", [1, 3, 32, 32]),
        ("scores", [1, 4]),
    ]


def test_the_mark_is_left_where_torch_is_wanted(shelf, no_torch):
    refused = shelf.compile(shelf.folder / "colours", "--weights", shelf.folder / "w.pth", "--name", "other")

    assert refused.code == 1
    assert no_torch.exists()


def test_the_same_onnx_file_makes_the_same_release(shelf, tmp_path):
    for name in ("a", "b"):
        assert (
            shelf.compile(shelf.folder / "colours.onnx", "--work", tmp_path / name, "-o", tmp_path / f"{name}.skb").code
            == 0
        )

    assert read_file(tmp_path / "a.skb", "bundle.json") == read_file(tmp_path / "b.skb", "bundle.json")


def test_an_onnx_file_with_int8(shelf, tmp_path):
    said = shelf.compile(shelf.folder / "colours.onnx", "--target", "x86-64", "-o", tmp_path / "net.skb")

    assert said.code == 0, said.err
    names = [hop["name"] for hop in shelf.evidence(tmp_path / "net.skb")["hops"]]
    assert names[:3] == ["pre-processing", "original ONNX → adopted", "ONNX → int8-rr"]


def test_a_recipe_beside_the_file_is_used_with_its_own_pre_processing(shelf, tmp_path):
    root = tmp_path / "colours"
    shutil.copytree(shelf.folder / "colours", root)
    shutil.copy(shelf.folder / "colours.onnx", root / "net.onnx")

    said = shelf.compile(root / "net.onnx", "-o", tmp_path / "net.skb")

    assert said.code == 0, said.err
    assert "assumed" not in said.out
    evidence, manifest = shelf.evidence(tmp_path / "net.skb"), shelf.manifest(tmp_path / "net.skb")
    assert manifest.labels == ["warm", "cold", "pale", "dark"]
    assert 40 < evidence["hops"][0]["sqnr_db"] < 200  # held to the user's own pre-processing
    assert {"code", "file net.onnx"} <= evidence["lineage"].keys()


def test_a_recipe_may_name_an_onnx_file_and_leave_out_what_the_file_knows(shelf, tmp_path):
    shutil.copy(shelf.folder / "colours.onnx", tmp_path / "net.onnx")
    (tmp_path / "recipe.toml").write_text("""
name = "named"
[model]
onnx = "net.onnx"
outputs = ["scores"]
[preprocess]
resize = "stretch"
mean = [0.4, 0.5, 0.6]
std = [0.2, 0.3, 0.25]
[postprocess]
kind = "classification"
scores = "scores"
""")

    said = shelf.compile(tmp_path, "-o", tmp_path / "net.skb")

    assert said.code == 0, said.err
    assert shelf.manifest(tmp_path / "net.skb").inputs[0].shape == [1, 3, 32, 32]


def test_an_image_in_bytes_channels_last_is_fed_as_it_is(shelf, tmp_path):
    nodes = [
        node("Cast", ["image"], ["x"], to=1),
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Div", ["t", "most"], ["d"]),
        conv("d"),
        *head("c", "weak"),
        node("Mul", ["weak", "loud"], ["scores"]),
    ]
    more = [held("most", 255.0, np.float32), held("loud", 200.0, np.float32)]
    onnx.save(graph(nodes, [*CONV, *HEAD, *more], image=value("image", 2, ["n", 40, 40, 3])), tmp_path / "net.onnx")

    said = shelf.compile(tmp_path / "net.onnx", "-o", tmp_path / "net.skb")

    assert said.code == 0, said.err
    assert "(nhwc)" in said.out
    assert "pixels as they are" in said.out
    manifest = shelf.manifest(tmp_path / "net.skb")
    assert (manifest.inputs[0].dtype, manifest.inputs[0].shape) == ("uint8", [1, 40, 40, 3])


def test_a_published_detector_is_compiled_and_gives_what_its_pytorch_twin_gives(shelf, tmp_path, data):
    """Opset 9, initializers listed as inputs, batch norm unfused: the same net as the `.pth`."""
    for kind in ("onnx", "torch"):
        root = tmp_path / kind
        shutil.copytree(STRANGERS / "rfb320", root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(data / "face" / "version-RFB-320.onnx", tmp_path / "onnx")
    bend = (tmp_path / "onnx" / "recipe.toml").read_text().replace('preprocess = "net.py:preprocess"\n', "")
    (tmp_path / "onnx" / "recipe.toml").write_text(bend)

    # No photo here shows a face, and a proof of nothing is refused: what counts comes before.
    mine = shelf.compile(tmp_path / "onnx" / "version-RFB-320.onnx", "--work", tmp_path / "a")
    weights = data / "face" / "version-RFB-320.pth"
    twin = shelf.compile(tmp_path / "torch", "--weights", weights, "--work", tmp_path / "b")

    for said in (mine, twin):
        assert "the model is sure of nothing" in said.refusal()
    (found,), (wanted,) = (list((tmp_path / work).glob("reference-*/reference.safetensors")) for work in ("a", "b"))
    found, wanted = load_file(found), load_file(wanted)
    assert found.keys() == wanted.keys()
    for name in [name for name in wanted if name.startswith("output")]:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-2)  # one resizes here and there a step apart


# Words on the way


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{folder}/script.pt"], 2, "TorchScript and pickled models hold code"),
        (["{folder}/w.pth"], 2, "it holds weights alone"),
        (["{folder}/w.safetensors"], 2, "it holds weights alone"),
        (["{folder}/nowhere.onnx"], 2, "nowhere.onnx is not there"),
        (["{folder}/colours.onnx", "--weights", "{folder}/w.pth"], 2, "a model file holds its own weights"),
        (["{folder}/colours.onnx", "--input", "1x3x64x64"], 2, "takes 1x3x32x32; the size asked for is 1x3x64x64"),
        (["{folder}/colours.pt2", "--input", "1x3x64x64"], 2, "takes 1x3x32x32; the size asked for is 1x3x64x64"),
        (["{folder}/training.pt2"], 1, "was exported in training mode"),
        (["{folder}/colours", "--weights", "{folder}/w.pth", "--batch", "16..1"], 2, "--batch 16..1: expected"),
        (["{folder}/colours", "--weights", "{folder}/w.pth", "--batch", "many"], 2, "--batch many: expected"),
        (["{folder}/colours", "--weights", "{folder}/other.safetensors"], 1, "does not fit the model: missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(shelf, words, code, said):
    refused = shelf.compile(*(word.replace("{folder}", str(shelf.folder)) for word in words))

    assert said in refused.refusal()
    assert refused.code == code


def greedy():
    """Asks for four terabytes when it runs."""
    nodes = [
        node("ReduceSum", ["image"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["whole"], to=7),
        node("Mul", ["whole", "zero"], ["none"]),
        node("Add", ["none", "many"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["filled"]),
        node("ReduceSum", ["filled"], ["total"], keepdims=0),
        node("Add", ["image", "total"], ["scores"]),
    ]
    return graph(nodes, [held("zero", 0, np.int64), held("many", [1 << 40], np.int64)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"no graph", "bad.onnx is not an ONNX file"),
        (lambda: greedy().SerializeToString(), "bad.onnx"),
        (lambda: graph([node("Magic", ["image"], ["scores"], domain="acme")]).SerializeToString(), "domain 'acme'"),
        (
            lambda: graph(
                [conv(), *head()], [*CONV, *HEAD], image=value("image", shape=[1, 3, "h", "w"])
            ).SerializeToString(),
            "leaves the size of 'image' open: 1x3x?x?; say it with --input",
        ),
    ],
    ids=["bytes", "greed", "domain", "open size"],
)
def test_a_bad_onnx_file_is_refused_in_one_line(shelf, make, said, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(make())

    assert said in shelf.compile(tmp_path / "bad.onnx").refusal()


def test_a_graph_that_hangs_a_library_ends_the_child_and_not_the_command():
    script = "from compiler.child.original import limited\nwith limited(1):\n    while True: pass"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == -signal.SIGALRM
    assert "with limits of 1 s" in done.stdout


# A program


def test_a_program_is_compiled(shelf, tmp_path):
    said = shelf.compile(shelf.folder / "colours.pt2", "-o", tmp_path / "net.skb")

    assert said.code == 0, said.err
    evidence = shelf.evidence(tmp_path / "net.skb")
    assert [hop["name"] for hop in evidence["hops"]] == ["pre-processing", "torch → ONNX fp32"]
    assert "file colours.pt2" in evidence["lineage"]
    assert "input 1x3x32x32" in said.out


# Weights, and more than one image at a time


def test_safetensors_and_many_images_at_a_time(shelf, tmp_path):
    out = tmp_path / "net.skb"

    said = shelf.compile(
        shelf.folder / "colours", "--weights", shelf.folder / "w.safetensors", "--batch", "1..6", "-o", out
    )

    assert said.code == 0, said.err
    manifest = shelf.manifest(out)
    assert manifest.batch == (1, 6)
    assert manifest.inputs[0].shape == [1, 3, 32, 32]
    graph_bytes = read_file(out, manifest.variants[0].model)
    assert onnx.ModelProto.FromString(graph_bytes).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert shelf.evidence(out)["hops"][-1]["name"] == "fp32 at a batch of 1 and 6"
    assert shelf.evidence(out)["proofs"][0]["refused"] is None  # a device takes it one by one


STUBBORN = '''

class Stubborn(Colours):
    """Asks for one image in the end, however many come."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:1] + 0 * x.sum()


def stubborn() -> nn.Module:
    return Stubborn()


class Example(Colours):
    """Takes the batch of the example for a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / len(x.tolist() if torch.jit.is_tracing() else torch.ones(x.shape[0]).numpy())


def example() -> nn.Module:
    return Example()
'''


@pytest.mark.parametrize("name", ["stubborn", "example"])
def test_a_model_that_holds_on_to_one_batch_is_refused(shelf, name, tmp_path):
    root = tmp_path / "colours"
    shutil.copytree(shelf.folder / "colours", root)
    (root / "net.py").write_text((root / "net.py").read_text() + STUBBORN)

    refused = shelf.compile(f"{root}/net.py:{name}", "--weights", shelf.folder / "w.pth", "--batch", "1..4").refusal()

    assert "batch" in refused
