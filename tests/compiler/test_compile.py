"""Whole compilations of a small net, by the real command: what is resumed, repeated, refused, forced and told."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from shell import Said, Shell, photograph, repository, save_weights

from compiler.data import samples
from skerry import signing
from skerry.bundle import open_bundle, read_file, read_manifest
from skerry.manifest import Manifest

pytestmark = pytest.mark.slow

PASSES = ("load", "reference", "export", "calibrate", "quantize-int8-rr")
PHOTOS = 140


@dataclass(frozen=True)
class Bench:
    """A stranger's repository and photos, and the work directory of the compilations in it."""

    shell: Shell
    root: Path
    photos: Path
    work: Path

    def compile(self, out: Path, *more: str, watched: bool = False) -> Said:
        command = self.shell.watched if watched else self.shell.skerry
        words = [
            self.root,
            "--calib",
            self.photos,
            "--target",
            "x86-64",
            "--keep-slower",
            "--work",
            self.work,
            "-o",
            out,
            *more,
        ]
        return command("compile", *words)

    def bend(self, before: str, after: str) -> None:
        """Changes the recipe."""
        recipe = self.root / "recipe.toml"
        text = recipe.read_text()
        assert before in text
        recipe.write_text(text.replace(before, after))

    def pass_folder(self, name: str) -> Path:
        (found,) = [p for p in self.work.glob(f"{name}-*") if (p / "done.json").is_file()]
        return found


@dataclass(frozen=True)
class Built:
    """The first compilation, which the tests share and must leave alone."""

    bench: Bench
    out: Path
    said: Said

    @property
    def release(self) -> str:
        return release_of(self.out)

    @property
    def evidence(self) -> dict[str, Any]:
        return evidence_of(self.out)


def release_of(bundle: Path) -> str:
    return read_manifest(bundle)[1]


def evidence_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_file(bundle, "evidence/compile.json"))
    return found


def new_bench(folder: Path) -> Bench:
    shell, root = Shell(folder / "home"), repository("colours", folder / "colours")
    save_weights(shell, root, root / "w.pth")
    return Bench(shell, root, photograph(folder / "photos", PHOTOS), folder / "work")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One whole compilation."""
    folder = tmp_path_factory.mktemp(
        "built-in-a-folder-whose-name-is-as-long-as-they-are-on-machines-that-build-things"
    )
    bench, out = new_bench(folder), folder / "colours.skb"
    said = bench.compile(out, watched=True)
    assert said.code == 0, said.err
    return Built(bench, out, said)


@pytest.fixture
def again(built: Built, tmp_path: Path) -> Bench:
    """Everything as the first compilation left it, in another place, to be changed."""
    for name in ("colours", "photos", "work"):
        shutil.copytree(built.out.parent / name, tmp_path / name)
    bench = built.bench
    return replace(bench, root=tmp_path / "colours", photos=tmp_path / "photos", work=tmp_path / "work")


# What a compilation leaves


def test_the_parent_never_imports_torch(built: Built) -> None:
    assert built.said.line("torch in the parent").endswith("False")


def test_the_bundle_is_signed_and_says_what_it_is(built: Built) -> None:
    key = signing.load_public_key(built.bench.shell.public_key)

    bundle = open_bundle(built.out, [key])

    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.labels) == ("colours", 1, ["warm", "cold", "pale", "dark"])
    assert [(v.id, v.precision) for v in manifest.variants][:2] == [("fp32", "fp32"), ("int8-rr", "int8")]
    assert (manifest.proof.licence, manifest.proof.consent) == ("CC0-1.0", "nobody is in it")
    assert manifest.proof.count <= 16
    assert list(built.out.parent.glob("*.part")) == []


def test_what_was_printed_is_in_the_evidence_and_on_the_page(built: Built) -> None:
    evidence, page = built.evidence, read_file(built.out, "evidence/report.html").decode()

    assert [hop["name"] for hop in evidence["hops"]][:3] == ["pre-processing", "torch → ONNX fp32", "ONNX → int8-rr"]
    for hop in evidence["hops"]:
        assert hop["failed"] is None
        number = f"{hop['sqnr_db']:.1f} dB"
        assert number in built.said.out
        assert number in page
    assert evidence["hops"][1]["same"] == evidence["hops"][1]["decided"] > 0
    for timing in evidence["timings"]:
        assert f"{timing['median_ms']:.2f} ms" in built.said.out
        assert f"{timing['median_ms']:.2f} ms" in page
    assert [t["model"] for t in evidence["timings"]][:3] == ["torch", "fp32", "int8-rr"]
    assert evidence["release"] == built.release
    assert built.release in page
    assert evidence["forced"] == []


def test_the_name_of_the_bundle_is_printed_in_one_piece(built: Built) -> None:
    """Else nobody can copy it from a narrow terminal, and no script can read it."""
    assert str(built.out) in built.said.line("signed:")


def test_the_page_needs_nothing_but_itself(built: Built) -> None:
    page = read_file(built.out, "evidence/report.html").decode()

    assert page.startswith("<!doctype html>")
    assert re.findall(r"https?:|//|src=|href=|url\(|@import|<script|<link|<img", page) == []


def test_the_evidence_names_everything_that_went_in(built: Built) -> None:
    evidence, weights = built.evidence, built.bench.root / "w.pth"
    found = samples.collect([built.bench.photos])

    assert evidence["lineage"]["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert evidence["calibration"]["frames"] == len(found.calibration)
    assert evidence["calibration"]["report_frames"] == len(found.report)
    assert evidence["calibration"]["digest"] == found.digest()
    assert evidence["tools"].keys() >= {"torch", "onnx", "onnxruntime", "numpy", "skerry"}
    assert [step["name"] for step in evidence["passes"]["int8-rr"]] == ["load", "export", "calibrate", PASSES[-1]]
    assert {proof["refused"] for proof in evidence["proofs"]} == {None}


def test_the_bill_of_materials_holds_the_weights(built: Built) -> None:
    document = json.loads(read_file(built.out, "sbom.json"))

    (weights,) = [part for part in document["components"] if part["name"] == "w.pth"]
    assert weights["hashes"][0]["content"] == built.evidence["lineage"]["weights"]
    assert document["metadata"]["component"]["hashes"][0]["content"] == built.release


# What is resumed, and what is not


def test_a_second_run_resumes_every_pass_wherever_the_files_lie_now(built: Built, again: Bench, tmp_path: Path) -> None:
    said = again.compile(tmp_path / "again.skb")

    for name in PASSES:
        assert said.line(f"  {name}:") == f"  {name}: done before, resumed"
    assert release_of(tmp_path / "again.skb") == built.release


def test_two_independent_runs_make_the_same_release_byte_for_byte(built: Built, tmp_path: Path) -> None:
    other = new_bench(tmp_path)

    assert other.compile(tmp_path / "other.skb").code == 0

    raw, release = read_manifest(tmp_path / "other.skb")
    assert release == built.release
    assert raw == read_manifest(built.out)[0]
    for variant in Manifest.parse(raw).variants:
        for path in variant.files:
            assert read_file(tmp_path / "other.skb", path) == read_file(built.out, path), path


def test_what_was_lost_is_made_again_and_nothing_else(built: Built, again: Bench, tmp_path: Path) -> None:
    shutil.rmtree(again.pass_folder("calibrate"))
    (again.pass_folder("quantize-int8-rr") / "model.onnx").write_bytes(b"not what it was")

    said = again.compile(tmp_path / "again.skb")

    for name in ("load", "reference", "export"):
        assert "resumed" in said.line(f"  {name}:")
    for name in ("calibrate", "quantize-int8-rr"):
        assert "resumed" not in said.line(f"  {name}:")
    assert release_of(tmp_path / "again.skb") == built.release


def test_a_compilation_that_was_killed_goes_on_where_it_was(built: Built, again: Bench, tmp_path: Path) -> None:
    fresh = replace(again, work=tmp_path / "fresh")
    words = [fresh.root, "--calib", fresh.photos, "--target", "x86-64", "--work", fresh.work]
    process = fresh.shell.start("compile", *words, "-o", tmp_path / "again.skb")
    while not list(fresh.work.glob("export-*/done.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "again.skb").exists()

    said = fresh.compile(tmp_path / "again.skb")

    for name in ("load", "reference"):
        assert "resumed" in said.line(f"  {name}:")
    assert release_of(tmp_path / "again.skb") == built.release


def test_other_weights_are_another_release(built: Built, again: Bench, tmp_path: Path) -> None:
    save_weights(again.shell, again.root, again.root / "w.pth", seed=2)

    said = again.compile(tmp_path / "again.skb")

    assert "resumed" not in said.out
    assert release_of(tmp_path / "again.skb") != built.release


def test_another_recipe_is_another_release_though_no_pass_runs_again(
    built: Built, again: Bench, tmp_path: Path
) -> None:
    again.bend("top = 2", "top = 3")

    said = again.compile(tmp_path / "again.skb")

    assert said.out.count("resumed") == len(PASSES)
    assert release_of(tmp_path / "again.skb") != built.release


def test_another_calibration_frame_gives_what_a_fresh_compilation_gives(
    built: Built, again: Bench, tmp_path: Path
) -> None:
    """Even a frame that is no extreme of anything: it takes part in the correction of the biases."""
    photo = Path(samples.collect([again.photos]).calibration[0].path)
    pixels = np.asarray(Image.open(photo), np.float32)
    for share in np.linspace(0.5, 0.6, 40):  # greyer, until the split leaves it among the calibration frames
        Image.fromarray((pixels * share + 128 * (1 - share)).astype(np.uint8)).save(photo)
        if str(photo) == samples.collect([again.photos]).calibration[0].path:
            break

    assert again.compile(tmp_path / "resumed.skb").code == 0
    assert replace(again, work=tmp_path / "fresh").compile(tmp_path / "fresh.skb").code == 0

    assert release_of(tmp_path / "resumed.skb") == release_of(tmp_path / "fresh.skb")
    assert release_of(tmp_path / "fresh.skb") != built.release


def test_a_file_that_the_builder_reads_is_part_of_the_code(again: Bench, tmp_path: Path) -> None:
    """The width of a net in a JSON file beside it, say."""
    (again.root / "size.json").write_text("4")
    code = (again.root / "net.py").read_text()
    reads = code.replace("return Colours()", 'return Colours(int(Path(__file__).with_name("size.json").read_text()))')
    wide = reads.replace("def __init__(self) -> None:", "def __init__(self, wide: int = 4) -> None:")
    (again.root / "net.py").write_text(wide.replace("nn.Linear(32, 4)", "nn.Linear(32, wide)"))
    again.bend("max_time_ratio = 4.0", "min_sqnr_db = 190.0")  # refused at the last hop: what counts is before that
    again.compile(tmp_path / "again.skb").refusal()

    (again.root / "size.json").write_text("5")

    refused = again.compile(tmp_path / "again.skb").refusal()
    assert "w.pth does not fit the model" in refused


def test_user_code_does_not_run_until_something_must_be_measured(again: Bench, tmp_path: Path) -> None:
    (again.root / "built").unlink()
    again.bend("max_time_ratio = 4.0", "min_sqnr_db = 190.0")

    said = again.compile(tmp_path / "again.skb")

    assert said.out.count("resumed") == len(PASSES)
    assert "ONNX → int8-rr: outputs differ from torch" in said.refusal()
    assert not (again.root / "built").exists()
    assert not (tmp_path / "again.skb").exists()


# What is refused


def test_an_export_that_left_torch_is_refused_and_its_first_wrong_layer_named(again: Bench, tmp_path: Path) -> None:
    folder = again.pass_folder("export")
    model = onnx.load(folder / "model.onnx")
    table = next(t for t in model.graph.initializer if t.name == "features.1.conv.weight")
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * np.float32(1.3), table.name))
    onnx.save(model, folder / "model.onnx")
    mark = json.loads((folder / "done.json").read_text())
    mark["files"]["model.onnx"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "done.json").write_text(json.dumps(mark))

    refused = again.compile(tmp_path / "again.skb").refusal()

    assert "torch → ONNX fp32: outputs differ from torch" in refused
    assert "the first layer that diverges is features.1" in refused
    assert not (tmp_path / "again.skb").exists()


_RUINED = '''

class Ruined(Colours):
    """Its second convolution has a giant weight for a channel that is always zero: no grid holds the others too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        first, second = self.features[0], self.features[1].conv
        with torch.no_grad():
            first.norm.weight[5], first.norm.bias[5] = 0.0, -1.0
            second.weight[:, 5] = 1e4
            self.head.weight.mul_(40)


def ruined() -> nn.Module:
    return Ruined()
'''


def test_a_layer_that_quantization_ruins_is_refused_by_name(again: Bench, tmp_path: Path) -> None:
    code = again.root / "net.py"
    code.write_text(code.read_text() + _RUINED)
    words = ["--calib", again.photos, "--target", "x86-64", "--work", again.work, "-o", tmp_path / "again.skb"]
    again.bend('weights = "w.pth"', "")

    refused = again.shell.skerry("compile", f"{code}:ruined", *words).refusal()

    assert "ONNX → int8-rr: outputs differ from torch" in refused
    assert "the first layer that diverges is features.1" in refused
    assert not (tmp_path / "again.skb").exists()


def test_colours_in_the_wrong_order_are_refused_as_pre_processing(again: Bench, tmp_path: Path) -> None:
    again.bend('color = "rgb"', 'color = "bgr"')

    refused = again.compile(tmp_path / "again.skb").refusal()

    assert "pre-processing: the recipe's pre-processing is not that of the code the net was trained with" in refused
    assert "check color" in refused
    assert not (tmp_path / "again.skb").exists()


# What is forced


def test_what_is_forced_says_so_and_is_refused_by_the_device_all_the_same(
    built: Built, again: Bench, tmp_path: Path
) -> None:
    again.bend('color = "rgb"', 'color = "bgr"')
    out, data = tmp_path / "forced.skb", tmp_path / "device"

    said = again.compile(out, "--force")

    assert said.code == 0
    told = " ".join(said.out.split())
    assert "FORCED past: pre-processing: the recipe's pre-processing is not that" in told
    assert "check color, mean, std and resize in [preprocess]" in told
    evidence, before = evidence_of(out), Manifest.parse(read_manifest(built.out)[0])
    assert any("pre-processing" in text for text in evidence["forced"])
    assert evidence["proofs"][0]["refused"] is not None
    assert Manifest.parse(read_manifest(out)[0]).proof.limits == before.proof.limits  # no limit was loosened
    assert "FORCED" in again.shell.skerry("inspect", out).out

    agent = again.shell.start("agent", "run", "--data", data, "--source", again.photos, "--loop", "--quiet")
    try:
        verdict = again.shell.skerry("agent", "install", out, "--data", data, "--wait", "60")
    finally:
        agent.terminate()
        agent.communicate()
    assert verdict.code == 1
    assert "its pre-processing is not the reference's" in verdict.line("refused:")


def test_too_few_calibration_frames_may_be_forced_and_the_evidence_says_so(again: Bench, tmp_path: Path) -> None:
    few = replace(again, photos=photograph(tmp_path / "few", 40))
    assert "calibration frames, at least 100 wanted" in few.compile(tmp_path / "few.skb").refusal()

    assert few.compile(tmp_path / "few.skb", "--force").code == 0

    (forced,) = evidence_of(tmp_path / "few.skb")["forced"]
    assert "calibration frames, at least 100 wanted" in forced
