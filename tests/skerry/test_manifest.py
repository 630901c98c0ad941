"""``bundle.json``: kept as bytes, viewed as values, refused where it contradicts itself."""

from __future__ import annotations

import copy
import hashlib
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.errors import FormatError, UnsafePath
from skerry.manifest import (
    FLOOR,
    Accelerator,
    DeviceFacts,
    Limits,
    Manifest,
    Preprocess,
    Requires,
    eligible,
    release_id,
    tighter,
    why_not,
)

SHA = "0123456789abcdef" * 4


def file(path, size=10):
    return {"path": path, "media_type": "application/octet-stream", "size": size, "sha256": SHA}


def variant(name, **requires):
    folder = f"variants/{name}"
    return {
        "id": name,
        "backend": "onnxrt",
        "precision": name,
        "requires": requires,
        "model": f"{folder}/model.onnx",
        "files": [f"{folder}/model.onnx", f"{folder}/weights.bin"],
        "weights": [{"name": "w", "file": f"{folder}/weights.bin", "offset": 0, "size": 10, "sha256": SHA}],
    }


CLASSIFIER = {
    "format": "skerry.bundle/1.0",
    "name": "tiny",
    "version": 3,
    "task": "classification",
    "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 8, 8]}],
    "outputs": [{"name": "scores", "dtype": "float32", "shape": [1, 2]}],
    "preprocess": {"resize": "stretch"},
    "postprocess": {"kind": "classification", "scores": "scores"},
    "labels": ["cat", "dog"],
    "variants": [variant("fp32"), variant("int8", arch=["aarch64"], cpu=["asimddp"])],
    "proof": {
        "count": 6,
        "inputs": 2,
        "frames": "proof/frames.safetensors",
        "reference": "proof/reference.safetensors",
        "answers": "proof/answers.json",
        "limits": {},
        "licence": "CC0-1.0",
        "consent": "nobody is in it",
    },
    "files": [
        file("proof/answers.json"),
        file("proof/frames.safetensors"),
        file("proof/reference.safetensors"),
        file("variants/fp32/model.onnx"),
        file("variants/fp32/weights.bin"),
        file("variants/int8/model.onnx"),
        file("variants/int8/weights.bin"),
    ],
}

DETECTOR = CLASSIFIER | {
    "task": "detection",
    "outputs": [
        {"name": "boxes", "dtype": "float32", "shape": [1, 20, 4]},
        {"name": "scores", "dtype": "float32", "shape": [1, 20, 2]},
    ],
    "postprocess": {"kind": "detection", "boxes": "boxes", "scores": "scores"},
}

finite = st.floats(allow_nan=False, allow_infinity=False)
fractions = st.floats(0, 1)
positive = st.integers(1, 2**62)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

limits = st.builds(
    Limits,
    min_input_sqnr_db=finite,
    min_sqnr_db=finite,
    min_agreement=fractions,
    min_margin=fractions,
    max_time_ratio=finite,
)
channels = st.one_of(st.tuples(finite), st.tuples(finite, finite, finite))
preprocessing = st.builds(
    Preprocess,
    color=st.sampled_from(["rgb", "bgr"]),
    resize=st.sampled_from(["crop", "letterbox", "stretch"]),
    resize_to=positive,
    interpolation=st.sampled_from(["bilinear", "nearest"]),
    antialias=st.booleans(),
    pad_value=st.integers(0, 255),
    scale=finite,
    mean=channels,
    std=channels.filter(lambda values: 0.0 not in values),
)


@st.composite
def manifests(draw):
    base = view(draw(st.sampled_from([CLASSIFIER, DETECTOR])))
    return msgspec.structs.replace(
        base,
        name=draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)),
        version=draw(positive),
        preprocess=draw(preprocessing),
        labels=draw(st.lists(text, min_size=2, max_size=2)),
        proof=msgspec.structs.replace(base.proof, limits=draw(limits), licence=draw(text), consent=draw(text)),
    )


def view(tree):
    return Manifest.parse(json.dumps(tree).encode())


def bent(tree, value, *path):
    """A copy of ``tree`` with ``value`` at ``path``."""
    tree = copy.deepcopy(tree)
    *above, last = path
    inner = tree
    for step in above:
        inner = inner[step]
    inner[last] = value
    return tree


def with_more(tree):
    """A copy in which every object has a field that this version does not know."""
    if isinstance(tree, dict):
        return {"added later": {"deep": [1, None]}} | {key: with_more(value) for key, value in tree.items()}
    return [with_more(value) for value in tree] if isinstance(tree, list) else tree


# --- laws ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(manifests())
def test_what_is_dumped_is_parsed_again(manifest):
    assert Manifest.parse(manifest.dump()) == manifest


@settings(deadline=None)
@given(manifests())
def test_the_same_manifest_makes_the_same_bytes_and_the_same_release(manifest):
    again = Manifest.parse(manifest.dump())

    assert again.dump() == manifest.dump()
    assert release_id(again.dump()) == release_id(manifest.dump())


def test_the_release_id_is_the_digest_of_the_bytes_and_not_of_what_they_say():
    compact, spaced = json.dumps(CLASSIFIER).encode(), json.dumps(CLASSIFIER, indent=1).encode()

    assert release_id(compact) == hashlib.sha256(compact).hexdigest()
    assert release_id(compact) != release_id(spaced)
    assert Manifest.parse(compact) == Manifest.parse(spaced)


@pytest.mark.parametrize("tree", [CLASSIFIER, DETECTOR], ids=["classifier", "detector"])
def test_fields_of_a_later_minor_version_do_not_disturb(tree):
    later = bent(tree, "skerry.bundle/1.7", "format")

    assert view(with_more(later)) == view(later)


@settings(deadline=None)
@given(limits, limits, limits)
def test_the_tighter_of_limits_is_at_least_as_strict_as_each_in_whatever_order(a, b, c):
    assert tighter(a, a) == a
    assert tighter(a, b) == tighter(b, a)
    assert tighter(tighter(a, b), c) == tighter(a, tighter(b, c))
    assert tighter(tighter(a, b), a) == tighter(a, b)


def test_the_default_limits_are_within_the_floor():
    assert tighter(Limits(), FLOOR) == Limits()


# --- versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skerry.bundle/1.0", "skerry.bundle/1.1", "skerry.bundle/1.999"])
def test_every_minor_version_of_this_major_one_is_read(name):
    assert view(bent(CLASSIFIER, name, "format")).format == name


@pytest.mark.parametrize(
    "name",
    [
        "skerry.bundle/2.0",
        "skerry.bundle/0.9",
        "skerry.bundle/10.0",
        "skerry.bundle/11",
        "skerry.bundle/01.0",
        "skerry.bundle/1",
        "skerry.bundle/1.",
        "skerry.bundle/1.0\n",
        "skerry.bundle/1.\u0663",
        "some.bundle/1.0",
        "",
    ],
)
def test_another_major_version_is_refused_with_what_to_do(name):
    with pytest.raises(FormatError, match="update Skerry"):
        view(bent(CLASSIFIER, name, "format"))


def test_another_major_version_is_told_by_its_name_even_if_nothing_else_is_understood():
    with pytest.raises(FormatError, match=r"format 'skerry\.bundle/2\.0'.*update Skerry"):
        Manifest.parse(b'{"format": "skerry.bundle/2.0", "inputs": "of another shape"}')


# --- contradictions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (bent(CLASSIFIER, "Tiny", "name"), "name 'Tiny'"),
        (bent(CLASSIFIER, "", "name"), "name ''"),
        (bent(CLASSIFIER, "a" * 65, "name"), "name"),
        (bent(CLASSIFIER, "tiny\n", "name"), "name"),
        (bent(CLASSIFIER, "../tiny", "name"), "name"),
        (bent(CLASSIFIER, "detection", "task"), "task"),
        (bent(DETECTOR, "classification", "task"), "task"),
        (bent(CLASSIFIER, [], "inputs"), "one 4-D image"),
        (bent(CLASSIFIER, CLASSIFIER["inputs"] * 2, "inputs"), "one 4-D image"),
        (bent(CLASSIFIER, [1, 3, 64], "inputs", 0, "shape"), "one 4-D image"),
        (bent(CLASSIFIER, [2, 3, 8, 8], "inputs", 0, "shape"), "batch 1"),
        (bent(CLASSIFIER, [4, 2], "batch"), "its batches end before they begin"),
        (bent(CLASSIFIER, [1, 8, 8, 3], "inputs", 0, "shape"), "color rgb needs 3"),
        (bent(CLASSIFIER, "nhwc", "preprocess", "layout"), "color rgb needs 3"),
        (bent(CLASSIFIER, "gray", "preprocess", "color"), "color gray needs 1"),
        (bent(CLASSIFIER, "crop", "preprocess", "resize"), "resize_to"),
        (bent(CLASSIFIER, [0.1, 0.2], "preprocess", "mean"), "mean and std"),
        (bent(CLASSIFIER, [], "preprocess", "mean"), "mean and std"),
        (bent(CLASSIFIER, [1.0] * 4, "preprocess", "std"), "mean and std"),
        (bent(CLASSIFIER, [1.0, 0.0, 1.0], "preprocess", "std"), "std has a zero"),
        (bent(CLASSIFIER, "logits", "postprocess", "scores"), r"reads \['logits'\]"),
        (bent(DETECTOR, "corners", "postprocess", "boxes"), r"reads \['corners'\]"),
        (bent(CLASSIFIER, CLASSIFIER["outputs"] * 2, "outputs"), "outputs"),
        (bent(DETECTOR, [], "labels"), "labels"),
        (bent(DETECTOR, ["cat", "dog", "cow"], "labels"), "labels"),
        (bent(DETECTOR, 2, "postprocess", "background"), "background"),
        (bent(CLASSIFIER, [], "variants"), "no variant"),
        (bent(CLASSIFIER, [variant("fp32")] * 2, "variants"), "one id"),
        (bent(CLASSIFIER, "variants/int8/model.onnx", "variants", 0, "model"), "fp32 has files outside"),
        (bent(CLASSIFIER, ["proof/answers.json"], "variants", 0, "files"), "fp32 has files outside"),
        (bent(CLASSIFIER, ["variants/fp32/weights.bin"], "variants", 0, "files"), "its own model"),
        (bent(CLASSIFIER, ["variants/fp32/model.onnx"], "variants", 0, "files"), "weights in a file"),
        (bent(CLASSIFIER, 1, "variants", 0, "weights", 0, "offset"), "weight"),
        (bent(CLASSIFIER, "proof/pictures", "proof", "frames"), "not listed: proof/pictures"),
        (bent(CLASSIFIER, "variants/fp32/weights.bin", "proof", "frames"), "proof"),
        (bent(CLASSIFIER, 7, "proof", "inputs"), "inputs"),
        (bent(CLASSIFIER, CLASSIFIER["files"][1:], "files"), "not listed: proof/answers.json"),
        (bent(CLASSIFIER, CLASSIFIER["files"][:-1], "files"), "not listed: variants/int8/weights.bin"),
        (bent(CLASSIFIER, CLASSIFIER["files"][::-1], "files"), "not in order"),
        (bent(CLASSIFIER, [CLASSIFIER["files"][0], *CLASSIFIER["files"]], "files"), "doubled"),
        (bent(CLASSIFIER, [*CLASSIFIER["files"], file("variants/int8/weights.bin/x")], "files"), "weights.bin"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tree, words):
    with pytest.raises(FormatError, match=words):
        view(tree)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (0, ("version",)),
        ("3", ("version",)),
        (1.5, ("version",)),
        ("guessing", ("task",)),
        ("float16", ("inputs", 0, "dtype")),
        ([1, 3, 0, 8], ("inputs", 0, "shape")),
        ([1, 3, "h", 8], ("inputs", 0, "shape")),
        ([0, 2], ("batch",)),
        ([1, 2, 3], ("batch",)),
        ("fill", ("preprocess", "resize")),
        (0, ("preprocess", "resize_to")),
        (256, ("preprocess", "pad_value")),
        ("segmentation", ("postprocess", "kind")),
        (1.1, ("postprocess", "min_score")),
        (0, ("postprocess", "top")),
        (0, ("proof", "count")),
        (-1, ("proof", "inputs")),
        (1.1, ("proof", "limits", "min_agreement")),
        (None, ("proof", "licence")),
        (-1, ("files", 0, "size")),
        ("A" * 64, ("files", 0, "sha256")),
        ("a" * 63, ("files", 0, "sha256")),
        ("a" * 64 + "\n", ("files", 0, "sha256")),
        ("a" * 64 + "\n", ("variants", 0, "weights", 0, "sha256")),
        (-1, ("variants", 0, "weights", 0, "offset")),
        ("", ("variants", 0, "id")),
        ("FP32", ("variants", 0, "id")),
        ("../fp32", ("variants", 0, "id")),
        ("a" * 33, ("variants", 0, "id")),
        ({}, ("files",)),
    ],
)
def test_a_value_that_its_field_cannot_hold_is_refused_by_its_place(value, path):
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)

    with pytest.raises(FormatError) as refused:
        view(bent(CLASSIFIER, value, *path))

    assert place in str(refused.value)


@pytest.mark.parametrize("field", sorted(CLASSIFIER))
def test_a_field_that_is_missing_is_refused_by_its_name(field):
    with pytest.raises(FormatError, match=f"missing required field `{field}`"):
        view({name: value for name, value in CLASSIFIER.items() if name != field})


@pytest.mark.parametrize("path", ["../evil", "/evil", "a/../../b", "a\\b", "", "proof/", "prööf"])
def test_a_path_that_is_not_plain_is_refused_by_name(path):
    with pytest.raises(UnsafePath) as refused:
        view(bent(CLASSIFIER, path, "files", 0, "path"))

    assert repr(path) in str(refused.value)


@pytest.mark.parametrize(
    "where", [("proof", "frames"), ("proof", "reference"), ("proof", "answers"), ("variants", 0, "weights", 0, "file")]
)
def test_a_path_that_climbs_out_is_refused_wherever_it_stands(where):
    with pytest.raises(FormatError):
        view(bent(CLASSIFIER, "../../etc/passwd", *where))


# --- hostile bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"format":"skerry.bundle/1.0\xff"}',
        b'{"format":"\\ud800"}',
        b'{"format":"skerry.bundle/1.0","name":"\xff"}',
        b'{"format":"skerry.bundle/1.0","version":1e999}',
        b'{"format":"skerry.bundle/1.0","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"deep":' * 100_000,
        b"[" * 100_000,
    ],
    ids=["empty", "null", "list", "half", "not-utf-8", "surrogate", "name", "infinite", "deep", "objects", "lists"],
)
def test_hostile_json_is_refused_as_a_format(raw):
    with pytest.raises(FormatError, match=r"bundle\.json"):
        Manifest.parse(raw)


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_a_damaged_manifest_is_read_or_refused_and_never_a_bug(mask):
    raw = json.dumps(CLASSIFIER).encode()

    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= mask
        try:
            Manifest.parse(bytes(damaged))
        except (FormatError, UnsafePath):
            continue


# --- which variants ------------------------------------------------------------------------------------------------


def test_a_variant_is_found_by_its_id_with_its_files_and_the_proof_s():
    manifest = view(CLASSIFIER)

    assert manifest.variant("int8").files == ["variants/int8/model.onnx", "variants/int8/weights.bin"]
    assert manifest.variant_files({"int8"}) == {
        "proof/answers.json",
        "proof/frames.safetensors",
        "proof/reference.safetensors",
        "variants/int8/model.onnx",
        "variants/int8/weights.bin",
    }


@pytest.mark.parametrize(
    ("arch", "cpu", "backends", "expected"),
    [
        ("aarch64", ["asimddp"], ["onnxrt"], ["fp32", "int8"]),
        ("aarch64", [], ["onnxrt"], ["fp32"]),
        ("x86_64", ["asimddp"], ["onnxrt"], ["fp32"]),
        ("aarch64", ["asimddp"], ["tensorrt"], []),
        ("aarch64", ["asimddp"], [], []),
    ],
)
def test_a_device_s_facts_say_which_variants_it_may_run(arch, cpu, backends, expected):
    facts = DeviceFacts(arch=arch, cpu=cpu, backends=backends)

    assert [v.id for v in eligible(view(CLASSIFIER), facts)] == expected


@pytest.mark.parametrize(
    ("backend", "requires", "words"),
    [
        ("tensorrt", Requires(), "needs backend tensorrt, here: onnxrt"),
        ("onnxrt", Requires(arch=["x86_64", "riscv64"]), "needs x86_64 or riscv64, this is aarch64"),
        ("onnxrt", Requires(cpu=["asimd", "i8mm", "sve"]), "needs CPU feature i8mm, sve"),
        ("onnxrt", Requires(arch=["aarch64"], cpu=["asimd"]), None),
    ],
)
def test_what_a_device_lacks_is_said_in_words(backend, requires, words):
    facts = DeviceFacts(arch="aarch64", cpu=["asimd"], backends=["onnxrt"])

    assert why_not(backend, requires, facts) == words


JP62 = Accelerator(sm="8.7", at_least="10.3.0", below="11", l4t=["36.4.3", "36.5"], system="jp6.2")
JP72 = Accelerator(sm="8.7", at_least="10.16.2", below="12", l4t=["39.2"], system="jp7.2")
RTX = Accelerator(sm="8.6", at_least="1.7.1.116", below="1.7.1.117")


def jetson(sm="8.7", l4t="36.4.3", version="10.3.0.30"):
    return DeviceFacts(arch="aarch64", cpu=[], backends=["tensorrt"], sm=sm, l4t=l4t, versions={"tensorrt": version})


@pytest.mark.parametrize(
    ("facts", "fits"),
    [
        (jetson(), True),
        (jetson(version="10.7.0.23"), True),
        (jetson(l4t="36.5.0"), True),
        (jetson(l4t="39.2.1", version="10.16.2.10"), True),
        (jetson(l4t="39.2.1", version="11.4.1.5"), True),
        (jetson(version="11.0.0.1"), False),
        (jetson(version="8.6.2.3"), False),
        (jetson(version="10.2.9"), False),
        (jetson(l4t="36.4.0"), False),
        (jetson(l4t="36.4.30"), False),
        (jetson(l4t="39.2.1"), False),  # the right system with the wrong TensorRT
        (jetson(l4t=None), False),
        (jetson(sm="11.0"), False),
        (jetson(sm=None), False),
        (jetson(version=""), False),
        (msgspec.structs.replace(jetson(), versions={}), False),
    ],
)
def test_a_tensorrt_variant_is_for_one_of_its_gpus_with_its_software(facts, fits):
    assert (why_not("tensorrt", Requires(accelerators=[JP62, JP72]), facts) is None) is fits


def test_why_a_tensorrt_variant_is_not_for_a_device_is_said_in_words():
    wanted = Requires(accelerators=[JP62])

    assert why_not("tensorrt", wanted, jetson(l4t="36.3.0", version="8.6.2")) == (
        "needs SM 8.7 with tensorrt 10.3.0 to below 11, jp6.2 (Jetson Linux 36.4.3 or 36.5); "
        "this is SM 8.7, tensorrt 8.6.2, Jetson Linux 36.3.0"
    )
    bare = DeviceFacts(arch="x86_64", cpu=[], backends=["tensorrt-rtx"])
    assert why_not("tensorrt-rtx", Requires(accelerators=[RTX]), bare) == (
        "needs SM 8.6 with tensorrt-rtx 1.7.1.116 to below 1.7.1.117; this is no GPU, tensorrt-rtx of unknown version"
    )


def test_an_engine_runs_under_the_very_release_that_built_it():
    def card(version):
        return DeviceFacts(
            arch="x86_64", cpu=[], backends=["tensorrt-rtx"], sm="8.6", versions={"tensorrt-rtx": version}
        )

    wanted = Requires(accelerators=[RTX])
    assert why_not("tensorrt-rtx", wanted, card("1.7.1.116")) is None
    assert all(why_not("tensorrt-rtx", wanted, card(other)) for other in ("1.7.1.117", "1.7.0.9", "1.8.0.1", "1.7.1"))


def test_a_variant_that_needs_no_accelerator_says_nothing_of_one():
    """What format 1.0 wrote is what is written still."""
    assert msgspec.json.encode(Requires(cpu=["vnni"])) == b'{"arch":[],"cpu":["vnni"]}'
    assert msgspec.json.decode(b'{"arch":[],"cpu":[]}', type=Requires) == Requires()
    kept = msgspec.json.encode(Requires(accelerators=[JP62]))
    assert msgspec.json.decode(kept, type=Requires).accelerators == [JP62]
