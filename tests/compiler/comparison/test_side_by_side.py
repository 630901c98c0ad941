"""`skerry compare`: what two bundles answer, how long they take, what their layers hold; and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import boxed
import msgspec
import numpy as np
import onnx
import pytest
import tiny
from onnx import helper, numpy_helper
from PIL import Image
from shell import Shell

from compiler.comparison import cli
from compiler.comparison.common_layers import Compared, Value
from compiler.comparison.comparison import Agreed, Comparison, Side
from compiler.comparison.verdicts import apart, verdicts
from compiler.evaluation.accuracy import Difference
from compiler.evaluation.statistics import Interval
from compiler.ingraph.wrap import Surroundings, surround
from skerry.errors import DatasetError, DigestMismatch, KeyNotTrusted, NotSigned, UsageError
from skerry.main import main
from skerry.manifest import InGraph, Requires


def photos(folder: Path, each: int = 6, *, by_label: bool = True) -> Path:
    for channel, label in enumerate(tiny.COLOURS):
        for number in range(each):
            place = folder / label if by_label else folder
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tiny.coloured(channel, 10 * number + channel)).save(place / f"{label}{number}.png")
    return folder


def with_before(kind: str, constant: np.ndarray, **attributes: object) -> onnx.ModelProto:
    """The tiny net behind one node that bends the picture."""
    node = helper.make_node(kind, ["image", "constant"], ["bent"], **attributes)
    return tiny.model([node], "bent", [numpy_helper.from_array(constant, "constant")])


def louder() -> onnx.ModelProto:
    """Every value is 1 % larger: 40 dB away."""
    return with_before("Mul", np.array(1.01, np.float32))


def red_is_green() -> onnx.ModelProto:
    return with_before("Gather", np.array([1, 0, 2], np.int64), axis=1)


def bundle(folder: Path, model: onnx.ModelProto | None = None, **fields: object) -> Path:
    return tiny.Tiny(variants={"fp32": model or tiny.model()}, **fields).pack(folder)[0]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    return tiny.write_keys(tmp_path)


# The whole way


@pytest.mark.slow
def test_a_release_against_one_that_is_a_little_louder(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, data = bundle(tmp_path), bundle(tmp_path, louder(), version=2), photos(tmp_path / "data")
    options = ["--data", str(data), "--trust", str(trust), "--seconds", "0.5"]

    assert main(["compare", str(a), str(b), *options, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["a"]["name"], found["b"]["name"]) == ("tiny@1", "tiny@2")
    assert (found["frames"], found["accuracy"]["samples"]) == (18, 18)
    assert found["accuracy"]["a"] == found["accuracy"]["b"] == 100.0
    assert found["agreed"]["same"] == found["agreed"]["decided"] > 0
    assert [found[side]["proof"].get("refused") for side in "ab"] == [None, None]
    assert found["differ"] == []
    assert found["sqnr_db"] == pytest.approx(40.0, abs=0.01)
    assert found["time_ratio"]["low"] <= found["time_ratio"]["value"] <= found["time_ratio"]["high"]
    assert found["rounds"] >= 3
    values = {value["name"]: value["sqnr_db"] for value in found["layers"]["values"]}
    assert values == {"scores": pytest.approx(40.0, abs=0.01)}  # what only moves values is no layer

    told = "\n".join(" ".join(row) for row in cli.rows(msgspec.convert(found, Comparison)))
    assert "+0.00 points" in told
    assert "18 of 18 decided ones agree" in told


@pytest.mark.slow
def test_a_release_that_takes_red_for_green_is_seen_by_its_accuracy_and_its_answers(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, data = bundle(tmp_path), bundle(tmp_path, red_is_green(), version=2), photos(tmp_path / "data")

    code = main(["compare", str(a), str(b), "--data", str(data), "--trust", str(trust), "--seconds", "0.2", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["accuracy"]["a"] == 100.0
    assert found["accuracy"]["b"] == pytest.approx(100 / 3)
    assert found["agreed"]["same"] == found["agreed"]["decided"] // 3
    assert found["accuracy"]["points"]["high"] < -20
    assert "its outputs differ from fp32" in found["b"]["proof"]["refused"]


def compared(capsys: pytest.CaptureFixture[str], a: Path, b: Path, trust: Path, *options: object) -> dict[str, Any]:
    """What the real command finds, in short."""
    code = main(["compare", str(a), str(b), "--trust", str(trust), "--seconds", "0.2", "--json", *map(str, options)])
    assert code == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_detectors_are_compared_by_ap50_on_boxes_as_voc_keeps_them(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (boxed.Boxed(version=1 + k, variants={"fp32": boxed.model(o)}) for k, o in enumerate([(0, 1, 2), (1, 0, 2)]))
    data = boxed.photos(tmp_path / "data", 36)

    found = compared(capsys, a.pack(tmp_path)[0], b.pack(tmp_path)[0], trust, "--data", data)

    assert (found["accuracy"]["metric"], found["accuracy"]["samples"], found["accuracy"]["a"]) == ("AP50", 36, 100.0)
    assert found["accuracy"]["points"]["high"] < -40
    assert (found["agreed"]["frames_same"], found["agreed"]["frames"]) == (12, 36)  # the blue ones


@pytest.mark.slow
def test_without_data_the_first_ones_proof_is_what_they_look_at(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = boxed.Boxed(), boxed.Boxed(version=2, min_score=0.7)

    found = compared(capsys, a.pack(tmp_path)[0], b.pack(tmp_path)[0], trust)

    assert (found["frames"], found["accuracy"]) == (6, None)
    assert "no --data" in found["no_accuracy"]
    assert found["agreed"]["same"] == found["agreed"]["decided"] == 12
    assert found["differ"] == ["postprocess min_score: 0.5 → 0.7"]


@pytest.mark.slow
def test_two_variants_of_one_folder_are_not_taken_for_one(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.Tiny(variants={"fp32": tiny.model(), "loud": louder()}).write(tmp_path / "both")
    named = ["--variant-a", "fp32", "--variant-b", "loud"]

    found = compared(capsys, tmp_path / "both", tmp_path / "both", trust, *named)

    assert found["sqnr_db"] == pytest.approx(40.0, abs=0.01)
    assert found["a"]["release"] == found["b"]["release"]


@pytest.mark.slow
def test_one_that_prepares_and_answers_in_its_graph_answers_as_the_plain_one(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = InGraph(frame=(20, 30), answers=True)
    drawn = surround(tiny.model(), tiny.Tiny().interface(), Surroundings(graph))
    made = tiny.Tiny(variants={"fp32": tiny.model(), "drawn": drawn}, graphs={"drawn": graph})
    path, data = made.pack(tmp_path)[0], photos(tmp_path / "data")
    named = ["--variant-a", "fp32", "--variant-b", "drawn", "--data", data]

    found = compared(capsys, path, path, trust, *named)

    assert found["accuracy"]["b"] == 100.0
    assert found["agreed"]["same"] == found["agreed"]["decided"] > 0
    assert found["sqnr_db"] > 60
    assert "no common input" in found["no_layers"]
    assert any(line.startswith("done in the graph: nothing →") for line in found["differ"])


@pytest.mark.slow
def test_one_that_takes_longer_takes_longer_beyond_chance(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    a, b = bundle(tmp_path), bundle(slow, tiny.endless(2000), version=2)
    data = photos(tmp_path / "data", 2, by_label=False)

    code = main(["compare", str(a), str(b), "--data", str(data), "--trust", str(trust), "--seconds", "2", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["time_ratio"]["low"] > 1.2
    assert found["accuracy"] is None
    assert "has no labels" in found["no_accuracy"]


@pytest.mark.slow
def test_the_fastest_variant_is_taken_unless_one_is_named(
    tmp_path: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requires = {"other": Requires(arch=["pdp11"])}
    made = tiny.Tiny(
        variants={"slow": tiny.endless(3000), "fp32": tiny.model(), "other": tiny.model()}, requires=requires
    )
    (path, _), data = made.pack(tmp_path), photos(tmp_path / "data", 2)
    options = ["--data", str(data), "--trust", str(trust), "--seconds", "0.3", "--json", "--variant-b", "slow"]

    assert main(["compare", str(path), str(path), *options]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["a"]["variant"], found["b"]["variant"]) == ("fp32", "slow")


@pytest.mark.slow
def test_a_model_that_eats_the_memory_costs_one_line_that_names_it(shell: Shell, tmp_path: Path, trust: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    a, b = bundle(tmp_path), bundle(bad, tiny.greedy(1 << 32), version=2)

    said = shell.skerry("compare", a, b, "--data", photos(tmp_path / "data", 1), "--trust", trust)

    assert b.name in said.refusal()
    assert "variant fp32" in said.refusal()


# What is refused before anything runs


def compare(a: Path, b: Path, data: Path, *options: str) -> int:
    return cli.main([str(a), str(b), "--data", str(data), *options])


def test_other_labels_are_no_comparison(tmp_path: Path, trust: Path) -> None:
    a, b = bundle(tmp_path), bundle(tmp_path, version=2, labels=["red", "green", "violet"])

    with pytest.raises(UsageError, match=r"3 labels, .* 3, and not the same: blue, violet"):
        compare(a, b, photos(tmp_path / "data", 1), "--trust", str(trust))


def test_a_stranger_is_refused_unless_nobody_is_asked(tmp_path: Path, trust: Path) -> None:
    a, b, empty = bundle(tmp_path), bundle(tmp_path, version=2, key=tiny.OTHER_KEY), tmp_path / "data"
    empty.mkdir()

    with pytest.raises(KeyNotTrusted, match=re.escape(b.name)):  # says which of the two it is
        compare(a, b, tmp_path, "--trust", str(trust))
    with pytest.raises(DatasetError, match="holds no photo"):  # it went on to the data, which are none
        compare(a, b, empty, "--unverified")


def test_a_damaged_file_is_refused_whoever_is_trusted(tmp_path: Path, trust: Path) -> None:
    root = tmp_path / "bundle"
    tiny.Tiny().write(root)
    weights = root / "variants" / "fp32" / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))

    for options in (["--trust", str(trust)], ["--unverified"]):
        with pytest.raises(DigestMismatch, match=r"weights\.bin"):
            compare(root, root, tmp_path, *options)


def test_one_that_nobody_signed_is_refused_by_name(tmp_path: Path, trust: Path) -> None:
    tiny.Tiny().write(tmp_path / "unsigned")
    (tmp_path / "unsigned" / "bundle.sig").unlink()

    with pytest.raises(NotSigned, match="unsigned"):
        compare(bundle(tmp_path), tmp_path / "unsigned", tmp_path, "--trust", str(trust))


def test_a_classifier_and_a_detector_have_nothing_in_common(tmp_path: Path, trust: Path) -> None:
    with pytest.raises(UsageError, match=r"does classification, .* does detection"):
        compare(bundle(tmp_path), boxed.Boxed().pack(tmp_path)[0], tmp_path, "--trust", str(trust))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--variant-a", "int4"], "no variant 'int4'; there are: fp32, other"),
        (["--variant-b", "other"], "nothing that this machine can run: other needs pdp11, this is "),
        (["--frames", "0"], "more than 0"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path: Path, trust: Path, options: list[str], says: str) -> None:
    made = tiny.Tiny(
        variants={"fp32": tiny.model(), "other": tiny.model()}, requires={"other": Requires(arch=["pdp11"])}
    )
    path, _ = made.pack(tmp_path)

    with pytest.raises(UsageError, match=says):
        compare(path, path, photos(tmp_path / "data", 1), "--trust", str(trust), *options)


# The table and the layers


def a_comparison(**changes: object) -> Comparison:
    side = {
        "release": "ab" * 32,
        "precision": "fp32",
        "backend": "onnxrt",
        "bytes": 4_000_000,
        "bundle_bytes": 9_000_000,
        "median_ms": 2.0,
    }
    values = [Value(f"v{n}", f"blocks.{n}", "Conv", "fp32", "int8", 40.0 - n) for n in range(9)]
    fields = {
        "a": Side(name="net@1", variant="fp32", **side),
        "b": Side(name="net@2", variant="int8", **side),
        "frames": 100,
        "found": 100,
        "differ": [],
        "agreed": Agreed(same=97, decided=99, frames_same=97, frames=99, share=Interval(92.9, 98.0, 99.8)),
        "time_ratio": Interval(0.48, 0.5, 0.53),
        "rounds": 40,
        "had_processor": 1.0,
        "accuracy": Difference(
            metric="top-1", samples=100, a=90.0, b=89.0, points=Interval(-3.1, -1.0, 1.2), needs_more=340
        ),
        "sqnr_db": 21.5,
        "layers": Compared(values, 9, 11),
    }
    return Comparison(**{**fields, **changes})


def test_the_table_says_each_number_with_what_it_is_of() -> None:
    rows = {row[0]: row[1:] for row in cli.rows(a_comparison())}

    assert rows["top-1 of 100"] == ("90.00 %", "89.00 %", "-1.00 points (-3.10 to +1.20)")
    assert rows["a frame"][2] == "0.50 x (0.48 to 0.53)"
    assert rows["answers"][2] == "97 of 99 decided ones agree"
    assert rows["variant's size"] == ("4.00 MB", "4.00 MB", "1.00 x")
    assert rows["own proof"][:2] == ("did not end", "did not end")


def test_the_values_furthest_apart_come_first_and_all_of_them_on_request() -> None:
    found = a_comparison().layers

    few, every = (list(cli.layer_lines(found, None, every=every)) for every in (False, True))

    assert [line.split()[2] for line in few[1:6]] == [f"blocks.{n}" for n in (8, 7, 6, 5, 4)]
    assert [line.split()[2] for line in every[1:]] == [f"blocks.{n}" for n in range(9)]
    assert list(cli.layer_lines(None, "these are two nets", every=True)) == [
        "layer by layer: not compared, these are two nets"
    ]


# The verdicts


def verdict(about: str, **changes: object) -> list[str]:
    lines = [line.split(maxsplit=1) for line in verdicts(a_comparison(**changes))]
    return [line[1] for line in lines if line[0] == about]


@pytest.mark.parametrize(
    ("points", "needs", "says"),
    [
        (Interval(-1.1, -0.7, -0.4), None, "b is 0.40 to 1.10 points worse (top-1, 200 samples)"),
        (Interval(0.4, 0.7, 1.1), None, "b is 0.40 to 1.10 points better (top-1, 200 samples)"),
        (
            Interval(-3.1, -1.0, 1.2),
            340,
            "cannot be told apart: b is between 3.10 points worse and 1.20 better (top-1, 200 samples; about 340 more",
        ),
        (
            Interval(-1.8, 0.0, 1.8),
            None,
            "cannot be told apart: b is between 1.80 points worse and 1.80 better (top-1, 200 samples)",
        ),
        (Interval(0.0, 0.0, 0.0), None, "right and wrong in the same places: these samples do not tell the two apart"),
    ],
)
def test_accuracy_is_judged_no_farther_than_its_interval(points: Interval, needs: int | None, says: str) -> None:
    difference = Difference(metric="top-1", samples=200, a=90.0, b=89.0, points=points, needs_more=needs)

    (said,) = verdict("accuracy", accuracy=difference)

    assert said.startswith(says)


def test_samples_that_lie_in_the_folder_are_named_before_others_are_asked_for() -> None:
    (few,) = verdict("accuracy", found=5000)
    (all_of_them,) = verdict("accuracy")

    assert few.endswith("; --data holds 5000: --frames 440")
    assert "--frames" not in all_of_them


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        (Interval(0.48, 0.5, 0.53), "b is faster: it takes 0.48 to 0.53 of a's time"),
        (Interval(1.1, 1.2, 1.3), "b is slower: it takes 1.10 to 1.30 of a's time"),
        (Interval(0.9, 0.95, 1.01), "cannot be told apart: b takes 0.90 to 1.01 of a's time"),
    ],
)
def test_latency_is_judged_no_farther_than_its_interval(ratio: Interval, says: str) -> None:
    assert verdict("latency", time_ratio=ratio) == [says]


def test_a_busy_machine_is_told_of_and_tells_of_great_differences_alone() -> None:
    (great,) = verdict("latency", had_processor=0.3)
    (small,) = verdict("latency", had_processor=0.7, time_ratio=Interval(0.88, 0.9, 0.92))

    assert great.startswith("b is faster")
    assert "busy, 30% of a processor was to be had" in great
    assert small.startswith("nothing can be said: this machine was busy, 70%")


def test_sizes_are_told_in_units_that_show_them() -> None:
    larger = msgspec.structs.replace(a_comparison().b, bytes=4_003_000)

    assert verdict("size") == ["as large"]
    assert verdict("size", b=larger) == ["b's variant is 3.0 kB larger (1.00 of a's)"]


def test_whoever_would_be_refused_by_a_device_is_named() -> None:
    refused = msgspec.structs.replace(a_comparison().b, no_proof="b.skb, variant int8: the model crashed (SIGSEGV)")

    said = verdict("proof", b=refused, a=msgspec.structs.replace(refused, no_proof=None))

    assert said == ["b: a device like this one would refuse it: b.skb, variant int8: the model crashed (SIGSEGV)"]


def test_without_labels_or_decided_answers_it_says_so() -> None:
    nothing = Agreed(same=0, decided=0, frames_same=0, frames=0, share=None)
    found = a_comparison(accuracy=None, no_accuracy="nobody labelled these", sqnr_db=None, agreed=nothing)
    rows = {row[0]: row[1:] for row in cli.rows(found)}

    assert rows["accuracy"] == ("-", "-", "not measured")
    assert rows["outputs"][2] == "other tensors"
    assert "  accuracy  not measured: nobody labelled these" in verdicts(found)
    assert "  answers   neither is sure of any: nothing is known" in verdicts(found)


def test_outputs_are_said_to_be_the_same_only_if_they_are() -> None:
    assert (apart(200.0), apart(199.0)) == ("bit for bit the same", "199.0 dB")
    assert "nothing in common" in apart(-200.0)
