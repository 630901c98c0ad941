"""A model file as the beginning of a recipe: what it knows nobody writes down, what not is assumed aloud."""

from __future__ import annotations

import hashlib

import onnx
import pytest
from graphs import CONV, HEAD, INT64, UINT8, conv, graph, head, node, plain, value

from compiler.sources import foreign, recipe
from compiler.sources.recipe import Overrides
from skerry.errors import ConfigError, SkerryError, UsageError
from skerry.manifest import Classification

NOTHING = Overrides()
RECIPE = """
name = "mine"
[model]
{model}
[preprocess]
resize = "stretch"
[postprocess]
kind = "classification"
scores = "scores"
"""


def save(folder, model, name="Street Cam.onnx"):
    onnx.save(model, folder / name)
    return folder / name


def softmaxed():
    return graph([conv(), *head("c", "h"), node("Softmax", ["h"], ["scores"])], [*CONV, *HEAD])


def sized(*shape, kind=1):
    return plain(image=value("image", kind, shape))


def test_a_file_alone_is_a_classifier_and_every_assumption_is_said(tmp_path):
    source = recipe.load(str(save(tmp_path, plain())), NOTHING)

    made = source.recipe
    assert (made.name, made.model.onnx, made.input.shape) == ("street-cam", "Street Cam.onnx", [1, 3, 8, 8])
    assert made.preprocess.resize_to == 9
    assert made.preprocess.mean == (0.485, 0.456, 0.406)
    assert isinstance(made.postprocess, Classification)
    assert made.postprocess.activation == "softmax"
    assert source.file == tmp_path / "Street Cam.onnx"
    assert source.weights is None
    classifier, preprocessing = source.assumed
    assert classifier.startswith(
        "no recipe.toml beside Street Cam.onnx: a classifier of RGB images, input 1x3x8x8 (nchw)"
    )
    assert preprocessing == "pre-processing: shorter side to 9, centre crop, ImageNet's mean and std"


def test_a_graph_that_ends_in_softmax_needs_no_second_one(tmp_path):
    source = recipe.load(str(save(tmp_path, softmaxed())), NOTHING)

    assert source.recipe.postprocess.activation == "none"
    assert "the graph ends in its activation" in source.assumed[0]


@pytest.mark.parametrize(
    ("model", "layout", "color", "said"),
    [
        (sized(1, 8, 8, 3), "nhwc", "rgb", "ImageNet's mean and std"),
        (sized(1, 1, 28, 28), "nchw", "gray", "pixels from 0 to 1"),
        (sized(1, 8, 8, 3, kind=UINT8), "nhwc", "rgb", "pixels as they are"),
        (sized("n", 3, 8, 8), "nchw", "rgb", "ImageNet's"),
    ],
)
def test_the_layout_and_the_colours_are_read_off_the_input(model, layout, color, said, tmp_path):
    source = recipe.load(str(save(tmp_path, model)), NOTHING)

    assert (source.recipe.preprocess.layout, source.recipe.preprocess.color) == (layout, color)
    assert said in source.assumed[1]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            graph([conv(), node("Relu", ["c"], ["r"])], CONV, outputs=[value("c"), value("r")]),
            "gives 2 outputs (c, r); a recipe.toml",
        ),
        (sized(1, 5, 8, 8), "which is no image of 1 or 3 colours"),
        (
            sized("n", 3, "h", 8),
            "leaves the size of 'image' open: 1x3x?x8; say it with --input, for example --input 1x3x224x8",
        ),
        (
            graph([conv()], CONV, outputs=[value("c", shape=["n", 4, 8, 8])]),
            "gives 'c' of ?x4x8x8, which is more than one score for each class",
        ),
        (
            graph([conv(), node("ArgMax", ["c"], ["label"], axis=1)], CONV, outputs=[value("label", INT64)]),
            "gives 'label' as int64, which are no scores",
        ),
        (plain(image=value("image")), "does not say the size of 'image'"),
    ],
)
def test_what_nobody_can_guess_is_asked_for(model, said, tmp_path):
    with pytest.raises(UsageError) as refused:
        recipe.load(str(save(tmp_path, model)), NOTHING)

    assert said in str(refused.value)


def test_an_open_size_may_be_said(tmp_path):
    source = recipe.load(str(save(tmp_path, sized("n", 3, "h", "w"))), Overrides(shape=[1, 3, 64, 48]))

    assert source.recipe.input.shape == [1, 3, 64, 48]


def test_a_size_that_the_file_contradicts_is_refused(tmp_path):
    with pytest.raises(UsageError, match="takes 1x3x8x8; the size asked for is 1x3x64x64"):
        recipe.load(str(save(tmp_path, plain())), Overrides(shape=[1, 3, 64, 64]))


def test_a_recipe_names_a_file_and_leaves_the_rest_to_it(tmp_path):
    save(tmp_path, plain(), "net.onnx")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(model='onnx = "net.onnx"'))

    source = recipe.load(str(tmp_path), Overrides(batch=(1, 8)))

    assert source.recipe.input.shape == [1, 3, 8, 8]
    assert source.recipe.model.outputs == ("scores",)
    assert source.recipe.input.batch == (1, 8)
    assert source.assumed == []


def test_a_file_beside_a_recipe_for_code_takes_the_code_s_place(tmp_path):
    path = save(tmp_path, plain(), "net.onnx")
    (tmp_path / "recipe.toml").write_text(
        RECIPE.format(model='build = "net.py:build"\nweights = "gone.pth"\noutputs = ["scores"]')
    )

    source = recipe.load(str(path), NOTHING)

    assert (source.recipe.model.onnx, source.recipe.model.build, source.weights) == ("net.onnx", "", None)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("", "expected one of `build`, `onnx` and `pt2`, found none - at `$.model`"),
        ('build = "net.py:build"\nonnx = "net.onnx"', "found build and onnx"),
        ('onnx = "other.onnx"', "other.onnx is not there"),
        ('onnx = "recipe.toml"', "is no .onnx file"),
        ('onnx = "net.onnx"\nweights = "w.pth"', "a model file holds its own weights - at `$.model.weights`"),
        ("onnx = 3", "Expected `str | null`, got `int` - at `$.model.onnx`"),
        ('onnx = "net.onnx"\n[input]\nbatch = [4, 2]', "expected the least and the most images"),
        ('onnx = "net.onnx"\n[input]\nbatch = [0, 2]', "Expected `int` >= 1 - at `$.input.batch[0]`"),
        ('onnx = "net.onnx"\n[input]\nshape = [1, 3, "x"]', "Expected `int`, got `str` - at `$.input.shape[2]`"),
        ('onnx = "net.onnx"\n[input]\nshape = [1, 3, 9, 9]', "takes 1x3x8x8; the size asked for is 1x3x9x9"),
    ],
)
def test_a_recipe_that_says_too_much_or_too_little_is_refused(model, said, tmp_path):
    save(tmp_path, plain(), "net.onnx")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(model=model))

    with pytest.raises(UsageError) as refused:
        recipe.load(str(tmp_path), NOTHING)

    assert said in str(refused.value)


def test_weights_do_not_go_with_a_file_that_has_its_own(tmp_path):
    path = save(tmp_path, plain())

    with pytest.raises(UsageError, match="a model file holds its own weights"):
        recipe.load(str(path), Overrides(weights=path))


def test_a_batch_that_ends_before_it_begins_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the least and the most"):
        recipe.load(str(save(tmp_path, plain())), Overrides(batch=(3, 2)))


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.safetensors", "net.ts", "net.torchscript", "NET.PT"])
def test_files_that_are_no_model_by_themselves_say_what_to_do(name, tmp_path):
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(UsageError, match=r"is not something to compile: .*file\.py:callable"):
        recipe.load(str(tmp_path / name), NOTHING)


def test_bytes_that_are_no_model_are_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"\xff" * 100)
    (tmp_path / "net.pt2").write_bytes(b"\xff" * 100)

    for name in ("net.onnx", "net.pt2"):
        with pytest.raises(SkerryError, match="net"):
            recipe.load(str(tmp_path / name), NOTHING)


def test_every_file_that_holds_a_part_of_the_model_is_named_by_its_digest(tmp_path):
    onnx.save(plain(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)

    found = foreign.digests(tmp_path / "net.onnx")

    assert found == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("net.onnx", "net.data")
    }
