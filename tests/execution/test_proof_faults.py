"""What must not get into service does not: every planted fault fails the proof, for its own reason.

The small release is `tiny`, the real one MobileNetV2 as `skerry compile` makes it. Where a fault changes a file, the
digests in bundle.json are made to fit again, unless the digest is what must notice: what catches the rest is the proof.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import needs
import numpy as np
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from skerry import signing
from skerry.bundle import unpack
from skerry.cpu import cpu_features
from skerry.execution import prove
from skerry.manifest import FLOOR, Limits

ROOT = Path(__file__).parents[2]


def proof_of(root, variants=("fp32",), *, limits=FLOOR, before=(), timeout_s=60.0):
    """The outcome of a proof in a child as the agent starts it; ``before`` may put an emulator in front."""
    asked = prove.Request(root=str(root), variants=list(variants), limits=limits, threads=1, memory_mib=1024)
    done = subprocess.run(
        [*before, *prove.command()],
        input=msgspec.json.encode(asked),
        capture_output=True,
        timeout=timeout_s,
        env=prove.environment(),
        check=False,
    )
    return prove.interpret(done.returncode, done.stdout, done.stderr)


def measured(outcome):
    """What a proof saw, for a failure's message: how far it was from each limit."""
    return "; ".join(
        f"{r.variant}: input {r.input_sqnr_db:.1f} dB, outputs {r.sqnr_db:.1f} dB, {r.same} of {r.decided} agree"
        for r in outcome.reports
    )


def assert_refused(outcome, *words):
    seen = f"{outcome.why or 'proved'} ({measured(outcome)})"
    assert outcome.variant is None, seen
    assert all(word in outcome.why for word in words), seen


def fit_digests(root):
    """Makes bundle.json fit the files again, as a compiler that did wrong would have."""
    path = root / "bundle.json"
    fields = msgspec.json.decode(path.read_bytes())
    for file in fields["files"]:
        file["size"] = (root / file["path"]).stat().st_size
        file["sha256"] = tiny.digest(root / file["path"])
    path.write_bytes(msgspec.json.encode(fields))


def with_fields(**changed):
    """A `tiny.Tiny.bend` that changes fields of the manifest's parts, e.g. ``preprocess={"color": "bgr"}``."""
    return lambda fields: {
        **fields,
        **{part: msgspec.structs.replace(fields[part], **values) for part, values in changed.items()},
    }


def built(folder, **bent):
    tiny.Tiny(**bent).write(folder)
    return folder


# --- pre- and post-processing --------------------------------------------------------------------------------------

PREPROCESSING = {
    "bgr for rgb": {"color": "bgr"},
    "no mean": {"mean": (0.0,)},
    "mean off by a fiftieth": {"mean": (0.12, 0.22, 0.32)},
    "no std": {"std": (1.0,)},
    "std off by a tenth": {"std": (0.55, 0.66, 0.77)},
    "scale to -1..1": {"scale": 1 / 127.5},
    "crop for stretch": {"resize": "crop", "resize_to": 8},
    "letterbox for stretch": {"resize": "letterbox"},
    "nearest for bilinear": {"interpolation": "nearest"},
    "no antialias": {"antialias": False},
}


@pytest.mark.parametrize("fault", PREPROCESSING)
def test_wrong_preprocessing_fails_the_proof(tmp_path, fault):
    outcome = proof_of(built(tmp_path / "tiny", bend=with_fields(preprocess=PREPROCESSING[fault])))
    assert_refused(outcome, "its pre-processing is not the reference's", "at least 40.0 wanted")
    (report,) = outcome.reports
    assert report.input_sqnr_db < 30, f"{fault}: {measured(outcome)}"


@pytest.mark.parametrize(("right", "wrong"), [("crop", "letterbox"), ("crop", "stretch"), ("letterbox", "crop")])
def test_the_wrong_way_to_resize_fails_the_proof(tmp_path, right, wrong):
    spec = msgspec.structs.replace(tiny.Tiny().preprocess, resize=right, resize_to=8)
    bent = built(tmp_path / "tiny", preprocess=spec, bend=with_fields(preprocess={"resize": wrong}))
    assert_refused(proof_of(bent), "its pre-processing is not the reference's")


@pytest.mark.parametrize("labels", [["green", "blue", "red"], ["blue", "green", "red"], ["Red", "Green", "Blue"]])
def test_wrong_labels_fail_the_proof(tmp_path, labels):
    outcome = proof_of(built(tmp_path / "tiny", bend=lambda fields: {**fields, "labels": labels}))
    assert_refused(outcome, "its answers differ from fp32", "of 6 agree, 90% wanted")


# --- weights -------------------------------------------------------------------------------------------------------


def net(change):
    """The tiny net with a changed table of weights."""
    model = tiny.model()
    table = tiny.weights()
    change(table)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    return model


def flipped_exponent(table):
    table.reshape(-1).view(np.uint32)[0] ^= np.uint32(1 << 30)


def one_nan(table):
    table[0, 0] = np.nan


def one_infinity(table):
    table[0, 0] = np.inf


def zeroed(table):
    table[:] = 0


def negated(table):
    table *= -1


def half_as_much_again(table):
    table *= 1.5


def transposed(table):
    table[:] = table.reshape(3, -1).T


@pytest.mark.parametrize(
    "change", [flipped_exponent, one_nan, one_infinity, zeroed, negated, half_as_much_again, transposed]
)
def test_wrong_weights_whose_digests_fit_fail_the_proof(tmp_path, change):
    outcome = proof_of(built(tmp_path / "tiny", variants={"fp32": net(change)}))
    assert_refused(outcome, "its outputs differ from fp32", "at least 15.0 wanted")


def quantized(mistake=1.0):
    """The tiny net in int8, with a scale that is off by the factor ``mistake``."""
    table = tiny.weights()
    scale = np.float32(np.abs(table).max() / 127)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("DequantizeLinear", ["table", "scale"], ["restored"]),
        helper.make_node("MatMul", ["flat", "restored"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, tiny.SIZE, tiny.SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(np.rint(table / scale).astype(np.int8), "table"),
            numpy_helper.from_array(np.float32(scale * mistake), "scale"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_variant_that_is_quantized_rightly_proves_and_one_with_a_wrong_scale_does_not(tmp_path):
    right = built(tmp_path / "right", variants={"fp32": tiny.model(), "int8": quantized()})
    wrong = built(tmp_path / "wrong", variants={"fp32": tiny.model(), "int8": quantized(1.5)})
    assert proof_of(right, ["int8"]).variant == "int8"
    assert_refused(proof_of(wrong, ["int8"]), "variant int8: its outputs differ from fp32: SQNR 6.0 dB")


def test_an_eligible_variant_that_fails_refuses_the_release_though_the_other_proves(tmp_path):
    root = built(tmp_path / "tiny", variants={"fp32": tiny.model(), "int8": quantized(1.5)})
    outcome = proof_of(root, ["fp32", "int8"])
    assert_refused(outcome, "variant int8: its outputs differ")
    assert [(r.variant, r.refused is None) for r in outcome.reports] == [("fp32", True), ("int8", False)]


def test_a_variant_that_does_not_load_refuses_the_release_though_the_other_would_prove(tmp_path):
    broken = tiny.model()
    broken.graph.node[0].op_type = "Frobnicate"
    root = built(tmp_path / "tiny", variants={"fp32": tiny.model(), "int8": broken})
    assert_refused(proof_of(root, ["fp32", "int8"]), "model.onnx does not load", "Frobnicate")


def with_other_outputs():
    model = tiny.model()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "logits"
    return model


def test_a_variant_with_other_outputs_than_promised_is_refused_in_a_sentence(tmp_path):
    outcome = proof_of(built(tmp_path / "tiny", variants={"fp32": with_other_outputs()}))
    assert_refused(outcome, "outputs", "compile it again")


# --- which of several ----------------------------------------------------------------------------------------------


def test_the_fastest_variant_that_proves_is_chosen(tmp_path):
    root = built(tmp_path / "tiny", variants={"fp32": tiny.endless(20_000), "int8": quantized()})
    outcome = proof_of(root, ["fp32", "int8"])
    assert outcome.variant == "int8"
    slow, fast = outcome.reports
    assert (slow.time_ratio, fast.time_ratio < 0.5) == (1, True)
    assert fast.time_ms < slow.time_ms


def test_a_variant_that_is_much_slower_than_fp32_is_refused(tmp_path):
    root = built(tmp_path / "tiny", variants={"fp32": tiny.model(), "int8": tiny.endless(20_000)})
    assert_refused(proof_of(root, ["fp32", "int8"]), "variant int8: it takes", "times as long as fp32, at most 2.00")


# --- files ---------------------------------------------------------------------------------------------------------

EVERY_FILE = [
    "variants/fp32/model.onnx",
    "variants/fp32/weights.bin",
    "proof/frames.safetensors",
    "proof/reference.safetensors",
    "proof/answers.json",
]


def flip(path, at=100, mask=1):
    raw = bytearray(path.read_bytes())
    raw[at] ^= mask
    path.write_bytes(raw)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_byte_that_flips_on_the_disk_after_the_release_was_verified_is_caught_in_the_child(tmp_path, name):
    root = built(tmp_path / "tiny")
    flip(root / name)
    assert_refused(proof_of(root), f"{name} is not the file that was signed")


@pytest.mark.parametrize("name", ["variants/fp32/weights.bin", *EVERY_FILE[2:]])
def test_a_file_that_is_missing_fails_the_proof(tmp_path, name):
    root = built(tmp_path / "tiny")
    (root / name).unlink()
    assert_refused(proof_of(root), f"{name} is not there")


def test_a_file_that_grew_fails_the_proof(tmp_path):
    root = built(tmp_path / "tiny")
    with (root / "variants/fp32/weights.bin").open("ab") as file:
        file.write(b"more")
    assert_refused(proof_of(root), "weights.bin has 2308 bytes; 2304 are expected")


def test_damage_on_this_disk_says_nothing_about_the_release(tmp_path):
    """The same release is good elsewhere, and here once it is fetched again: no id is remembered as bad for it."""
    root = built(tmp_path / "tiny")
    flip(root / "variants/fp32/weights.bin")
    outcome = proof_of(root)
    assert outcome.variant is None
    assert not outcome.verdict


def test_a_file_of_a_variant_that_nobody_asked_for_may_be_missing(tmp_path):
    root = built(tmp_path / "tiny", variants={"fp32": tiny.model(), "int8": quantized()})
    shutil.rmtree(root / "variants" / "int8")
    assert proof_of(root, ["fp32"]).variant == "fp32"


def test_answers_that_were_exchanged_with_digests_that_fit_fail_the_proof(tmp_path):
    root = built(tmp_path / "tiny")
    answers = root / "proof" / "answers.json"
    answers.write_bytes(answers.read_bytes().replace(b'"red"', b'"blu"').replace(b'"green"', b'"red"'))
    fit_digests(root)
    assert_refused(proof_of(root), "its answers differ from fp32")


@pytest.mark.parametrize("count", [5, 7])
def test_answers_to_more_or_fewer_frames_are_refused_in_a_sentence(tmp_path, count):
    root = built(tmp_path / "tiny")
    answers = root / "proof" / "answers.json"
    answers.write_bytes(msgspec.json.encode((msgspec.json.decode(answers.read_bytes()) * 2)[:count]))
    fit_digests(root)
    assert_refused(proof_of(root), "answers", f"{count}", "6")


@pytest.mark.parametrize(("name", "raw"), [("frames.safetensors", b""), ("reference.safetensors", b"\xff" * 100)])
def test_a_proof_set_that_is_garbage_cannot_be_read(tmp_path, name, raw):
    root = built(tmp_path / "tiny")
    (root / "proof" / name).write_bytes(raw)
    fit_digests(root)
    assert_refused(proof_of(root), "the proof set cannot be read")


def test_answers_that_are_garbage_cannot_be_read(tmp_path):
    root = built(tmp_path / "tiny")
    (root / "proof" / "answers.json").write_bytes(b"{}")
    fit_digests(root)
    assert_refused(proof_of(root), "proof/answers.json")


def put_into(path, name, array):
    """Exchanges one array of a safetensors file."""
    save_file({**load_file(path), name: array}, path)


def test_a_proof_set_that_holds_something_else_cannot_be_read(tmp_path):
    root = built(tmp_path / "tiny")
    save_file({"something/0": np.zeros(3, np.float32)}, root / "proof" / "reference.safetensors")
    fit_digests(root)
    assert_refused(proof_of(root), "the proof set cannot be read")


def test_frames_that_are_no_pictures_are_refused_in_a_sentence(tmp_path):
    root = built(tmp_path / "tiny")
    put_into(root / "proof" / "frames.safetensors", "frame/1", np.zeros((20, 30), np.uint8))
    fit_digests(root)
    assert_refused(proof_of(root), "the proof set cannot be read")


@pytest.mark.parametrize(("name", "shape"), [("output/scores/3", (1, 3)), ("input/1", (1, 3, tiny.SIZE, tiny.SIZE))])
def test_a_reference_that_is_no_number_proves_nothing(tmp_path, name, shape):
    root = built(tmp_path / "tiny")
    put_into(root / "proof" / "reference.safetensors", name, np.full(shape, np.nan, np.float32))
    fit_digests(root)
    assert_refused(proof_of(root))


# --- limits --------------------------------------------------------------------------------------------------------

ABSURD = Limits(min_input_sqnr_db=-1e9, min_sqnr_db=-1e9, min_agreement=0.0, min_margin=1.0, max_time_ratio=1e9)


@pytest.mark.parametrize(
    ("bent", "words"),
    [
        ({"bend": with_fields(preprocess={"color": "bgr"})}, "at least 30.0 wanted"),
        ({"variants": {"fp32": net(half_as_much_again)}}, "at least 10.0 wanted"),
        ({"bend": lambda fields: {**fields, "labels": ["green", "blue", "red"]}}, "0 of 6 agree, 80% wanted"),
    ],
)
def test_a_release_with_absurd_limits_of_its_own_is_held_to_the_devices(tmp_path, bent, words):
    assert_refused(proof_of(built(tmp_path / "tiny", limits=ABSURD, **bent)), words)


def test_absurd_limits_of_time_are_held_to_the_devices_too(tmp_path):
    variants = {"fp32": tiny.model(), "int8": tiny.endless(20_000)}
    root = built(tmp_path / "tiny", limits=ABSURD, variants=variants)
    assert_refused(proof_of(root, ["fp32", "int8"]), "at most 4.00 wanted")


def test_an_honest_release_with_absurd_limits_proves(tmp_path):
    assert proof_of(built(tmp_path / "tiny", limits=ABSURD)).variant == "fp32"


def test_a_device_may_ask_for_more_than_the_release_does(tmp_path):
    root = built(tmp_path / "tiny", variants={"fp32": tiny.model(), "int8": quantized(1.001)})
    strict = msgspec.structs.replace(FLOOR, min_sqnr_db=80.0)
    outcome = proof_of(root, ["fp32", "int8"], limits=strict)
    assert_refused(outcome, "variant int8", "at least 80.0 wanted")
    assert outcome.reports[0].refused is None


def test_a_release_cannot_escape_the_look_at_its_preprocessing_by_bringing_no_inputs(tmp_path):
    crop = {"resize": "crop", "resize_to": 8}  # costs the tiny net 3 dB of nothing: only the input shows it
    bent = built(tmp_path / "tiny", bend=with_fields(preprocess=crop, proof={"inputs": 0}))
    assert_refused(proof_of(bent))


# --- a real net ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """MobileNetV2 with ImageNet's weights, compiled with int8 variants for CPUs with and without VNNI, unpacked."""
    pytest.importorskip("torch")
    weights = needs.asset("weights/mobilenet_v2-b0353104.pth")
    folder = tmp_path_factory.mktemp("mobilenet")
    targets = ["--target", "x86-64", "--target", "x86-64-vnni"]
    calibration = ["--calib", ROOT / "assets" / "photos", "--calib", ROOT / "assets" / "video"]
    out, root = folder / "net.skb", folder / "net"
    command = [sys.executable, "-m", "skerry", "compile", "models/mobilenetv2", "--weights", weights]
    done = subprocess.run(
        [*command, *calibration, *targets, "-o", out, "--work", folder / "work"],
        env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    def keep(name, chunks):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"".join(chunks))

    key = signing.load_key(next(folder.rglob("*.pem")))
    with out.open("rb") as file:
        unpack(file, [key.public_key()], keep)
    return root


def copy_of(root, target):
    """A copy that shares the unchanged files; whoever changes one writes it anew."""
    return shutil.copytree(root, target, copy_function=os.link)


def rewrite(path, raw):
    path.unlink()
    path.write_bytes(raw)


def change_fields(root, **changed):
    fields = msgspec.json.decode((root / "bundle.json").read_bytes())
    for part, values in changed.items():
        fields[part] = {**fields[part], **values} if isinstance(values, dict) else values(fields[part])
    rewrite(root / "bundle.json", msgspec.json.encode(fields))


def change_weights(root, variant, name, change):
    """Lets ``change`` loose on one tensor, as 32-bit words, and makes the digests fit."""
    fields = msgspec.json.decode((root / "bundle.json").read_bytes())
    weights = next(v["weights"] for v in fields["variants"] if v["id"] == variant)
    place = next(w for w in weights if w["name"] == name)
    path, where = root / place["file"], slice(place["offset"], place["offset"] + place["size"])
    raw = bytearray(path.read_bytes())
    words = np.frombuffer(raw[where], np.uint32).copy()
    change(words)
    raw[where] = words.tobytes()
    rewrite(path, raw)
    rewrite(root / "bundle.json", msgspec.json.encode(fields))
    fit_digests(root)


REAL_PREPROCESSING = {
    "bgr for rgb": {"color": "bgr"},
    "no mean": {"mean": [0.0]},
    "mean of one half": {"mean": [0.5]},
    "mean in the other order": {"mean": [0.406, 0.456, 0.485]},
    "no std": {"std": [1.0]},
    "std of one half": {"std": [0.5]},
    "std in the other order": {"std": [0.225, 0.224, 0.229]},
    "scale to -1..1": {"scale": 1 / 127.5},
    "no scale": {"scale": 1.0},
    "stretch for crop": {"resize": "stretch"},
    "letterbox for crop": {"resize": "letterbox"},
    "another crop": {"resize_to": 232},
    "one pixel less": {"resize_to": 255},
    "nearest for bilinear": {"interpolation": "nearest"},
    "no antialias": {"antialias": False},
}


def variants_here():
    """Those that this machine is eligible for."""
    full_range = ["int8-vnni"] if has_vnni() else []
    return ["fp32", "int8-rr", *full_range]


def has_vnni():
    return "vnni" in cpu_features(Path("/proc/cpuinfo").read_text(encoding="utf-8"))


def on_the_real_net(test):
    """Marks a test of the compiled MobileNetV2."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(platform.machine() != "x86_64", reason="the variants are for x86-64"),
    ):
        test = mark(test)
    return test


@on_the_real_net
def test_a_real_net_proves_as_it_is_and_fails_with_every_wrong_preprocessing(mobilenet, tmp_path):
    honest = {variant: proof_of(mobilenet, [variant]) for variant in variants_here()}
    assert all(outcome.variant for outcome in honest.values()), {v: o.why for v, o in honest.items()}
    escaped = []
    for fault, values in REAL_PREPROCESSING.items():
        root = copy_of(mobilenet, tmp_path / fault.replace(" ", "-"))
        change_fields(root, preprocess=values)
        for variant in variants_here():
            outcome = proof_of(root, [variant])
            print(f"{fault}: {measured(outcome)}")  # noqa: T201 - shown with a failure, to judge the limits by
            if outcome.variant or "its pre-processing is not the reference's" not in outcome.why:
                escaped.append(f"{fault}: {outcome.why or 'proved'} ({measured(outcome)})")
    assert not escaped


@on_the_real_net
@pytest.mark.parametrize("shuffle", [lambda labels: labels[1:] + labels[:1], lambda labels: labels[::-1], sorted])
def test_a_real_net_with_shuffled_labels_fails(mobilenet, tmp_path, shuffle):
    root = copy_of(mobilenet, tmp_path / "net")
    change_fields(root, labels=shuffle)
    for variant in variants_here():
        assert_refused(proof_of(root, [variant]), "its answers differ from fp32", "of 16 agree, 80% wanted")


def exponent_of_the_first(words):
    words[0] ^= 1 << 30


def every_scale_half_as_much_again(words):
    words.view(np.float32)[:] *= 1.5


def all_nan(words):
    words.view(np.float32)[:] = np.nan


LAST_NARROW, LAST_WIDE = "features.17.conv.2.weight", "features.14.conv.1.0.weight"


@on_the_real_net
@pytest.mark.parametrize(
    ("variants", "name", "change"),
    [
        (["fp32"], LAST_NARROW, exponent_of_the_first),
        (["fp32"], LAST_NARROW, all_nan),
        (["int8-rr", "int8-vnni"], f"{LAST_WIDE}_bias_quantized", exponent_of_the_first),
        (["int8-rr", "int8-vnni"], f"{LAST_NARROW}_scale", every_scale_half_as_much_again),
        (["int8-rr", "int8-vnni"], f"{LAST_NARROW}_scale", all_nan),
    ],
)
def test_a_real_net_with_damaged_weights_whose_digests_fit_fails(mobilenet, tmp_path, variants, name, change):
    for variant in set(variants) & set(variants_here()):
        root = copy_of(mobilenet, tmp_path / variant)
        change_weights(root, variant, name, change)
        assert_refused(proof_of(root, [variant]), "its outputs differ from fp32", "at least 15.0 wanted")


@on_the_real_net
def test_a_real_net_with_a_flipped_bit_on_the_disk_is_caught_by_its_digest(mobilenet, tmp_path):
    root = copy_of(mobilenet, tmp_path / "net")
    raw = bytearray((root / "variants/fp32/weights.bin").read_bytes())
    raw[len(raw) // 2] ^= 1
    rewrite(root / "variants/fp32/weights.bin", raw)
    assert_refused(proof_of(root), "variants/fp32/weights.bin is not the file that was signed")


@on_the_real_net
def test_full_range_int8_is_refused_where_it_saturates_and_the_reduced_range_proves_there(mobilenet):
    """Without VNNI a CPU adds pairs of int8 products in 16 bits. An emulated Haswell is such a CPU."""
    before = [needs.program("qemu-x86_64", "qemu-user"), "-cpu", "Haswell"] if has_vnni() else []
    outcome = proof_of(mobilenet, ["int8-rr", "int8-vnni"], before=before, timeout_s=300)
    assert_refused(outcome, "variant int8-vnni: its outputs differ from fp32")
    reduced, full = outcome.reports
    assert reduced.refused is None, measured(outcome)
    assert full.sqnr_db < reduced.sqnr_db - 3, measured(outcome)
