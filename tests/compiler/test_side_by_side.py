"""`skerry compare`: what two bundles answer, how long they take, what their layers hold; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import tiny
from onnx import helper, numpy_helper
from PIL import Image
from shell import Shell

from compiler import labelled, side_by_side
from compiler.comparison import Comparison, Side
from compiler.contest import Compared, Value
from compiler.statistics import Interval
from skerry.errors import CalibrationError, DigestMismatch, KeyNotTrusted, UsageError
from skerry.main import main
from skerry.manifest import Requires


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
    assert (found["frames"], found["labelled"]) == (18, 18)
    assert found["a"]["hits"] == found["b"]["hits"] == 18
    assert found["same"] == found["decided"] > 0
    assert found["sqnr_db"] == pytest.approx(40.0, abs=0.01)
    assert found["time_ratio"]["low"] <= found["time_ratio"]["value"] <= found["time_ratio"]["high"]
    assert found["rounds"] >= 3
    values = {value["name"]: value["sqnr_db"] for value in found["layers"]["values"]}
    assert values == {"flat": pytest.approx(40.0, abs=0.01), "scores": pytest.approx(40.0, abs=0.01)}

    told = "\n".join(" ".join(row) for row in side_by_side.rows(msgspec.convert(found, Comparison)))
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
    assert (found["a"]["hits"], found["b"]["hits"]) == (18, 6)
    assert found["same"] == found["decided"] // 3
    assert found["accuracy_points"]["high"] < -20


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
    assert found["a"]["hits"] is found["accuracy_points"] is None  # nobody labelled these


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
    return side_by_side.main([str(a), str(b), "--data", str(data), *options])


def test_other_labels_are_no_comparison(tmp_path: Path, trust: Path) -> None:
    a, b = bundle(tmp_path), bundle(tmp_path, version=2, labels=["red", "green", "violet"])

    with pytest.raises(UsageError, match=r"3 labels, .* 3, and not the same: blue, violet"):
        compare(a, b, photos(tmp_path / "data", 1), "--trust", str(trust))


def test_a_stranger_is_refused_unless_nobody_is_asked(tmp_path: Path, trust: Path) -> None:
    a, b, empty = bundle(tmp_path), bundle(tmp_path, version=2, key=tiny.OTHER_KEY), tmp_path / "data"
    empty.mkdir()

    with pytest.raises(KeyNotTrusted):
        compare(a, b, tmp_path, "--trust", str(trust))
    with pytest.raises(CalibrationError, match="no calibration data"):  # it went on to the data, which are none
        compare(a, b, empty, "--unverified")


def test_a_damaged_file_is_refused_whoever_is_trusted(tmp_path: Path, trust: Path) -> None:
    root = tmp_path / "bundle"
    tiny.Tiny().write(root)
    weights = root / "variants" / "fp32" / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))

    for options in (["--trust", str(trust)], ["--unverified"]):
        with pytest.raises(DigestMismatch, match=r"weights\.bin"):
            compare(root, root, tmp_path, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--variant-a", "int4"], "no variant 'int4'; there are: fp32, other"),
        (["--variant-b", "other"], "this machine cannot run other"),
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


# The frames


def test_folders_that_are_labels_give_labels_and_a_plain_folder_gives_none(tmp_path: Path) -> None:
    named = labelled.read(photos(tmp_path / "named"), tiny.COLOURS, 100)
    plain = labelled.read(photos(tmp_path / "plain", by_label=False), tiny.COLOURS, 100)

    assert [frame.label for frame in named].count("green") == 6
    assert len(named) == len(plain) == 18
    assert {frame.label for frame in plain} == {None}


def test_fewer_frames_are_taken_evenly(tmp_path: Path) -> None:
    frames = labelled.read(photos(tmp_path / "data"), tiny.COLOURS, 6)

    assert [frame.label for frame in frames] == ["blue", "blue", "green", "green", "red", "red"]


def test_a_folder_that_is_no_label_is_named(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", 1)
    (data / "red").rename(data / "rot")

    with pytest.raises(UsageError, match="no label of the model: rot"):
        labelled.read(data, tiny.COLOURS, 10)


def test_data_that_are_not_there_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        labelled.read(tmp_path / "nowhere", tiny.COLOURS, 10)


# The words


def a_comparison(**changes: object) -> Comparison:
    side = {
        "release": "ab" * 32,
        "precision": "fp32",
        "backend": "onnxrt",
        "bytes": 4_000_000,
        "bundle_bytes": 9_000_000,
        "median_ms": 2.0,
    }
    values = [Value(f"v{n}", "Conv", "fp32", "int8", 40.0 - n) for n in range(9)]
    fields = {
        "a": Side(name="net@1", variant="fp32", hits=90, **side),
        "b": Side(name="net@2", variant="int8", hits=89, **side),
        "frames": 120,
        "labelled": 100,
        "same": 97,
        "decided": 99,
        "time_ratio": Interval(0.48, 0.5, 0.53),
        "rounds": 40,
        "accuracy_points": Interval(-3.1, -1.0, 1.2),
        "sqnr_db": 21.5,
        "layers": Compared(values, 9, 11),
    }
    return Comparison(**{**fields, **changes})


def test_the_table_says_each_number_with_what_it_is_of() -> None:
    rows = {row[0]: row[1:] for row in side_by_side.rows(a_comparison())}

    assert rows["top-1 of 100"] == ("90.00 %", "89.00 %", "-1.00 points (-3.10 to +1.20)")
    assert rows["a frame"][2] == "0.50 x (0.48 to 0.53), 40 rounds in turns"
    assert rows["answers"][2] == "97 of 99 decided ones agree"
    assert rows["variant's size"][2] == "1.00 x"


def test_without_labels_or_common_outputs_it_says_so() -> None:
    rows = {row[0]: row[1:] for row in side_by_side.rows(a_comparison(accuracy_points=None, sqnr_db=None))}

    assert "no label is known" in rows["accuracy"][2]
    assert rows["outputs"][2] == "other tensors"


def test_the_values_furthest_apart_come_first_and_all_of_them_on_request() -> None:
    found = a_comparison().layers

    few, every = (list(side_by_side.layer_lines(found, None, every=every)) for every in (False, True))

    assert [line.split()[2] for line in few[1:6]] == ["v8", "v7", "v6", "v5", "v4"]
    assert [line.split()[2] for line in every[1:]] == [f"v{n}" for n in range(9)]
    assert list(side_by_side.layer_lines(None, "these are two nets", every=True)) == [
        "layer by layer: not compared, these are two nets"
    ]
