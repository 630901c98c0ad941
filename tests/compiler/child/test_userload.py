"""Building the user's model and loading its weights: what is taken as it is meant, what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compiler.child.reference import write_reference
from compiler.child.usercode import UserError
from compiler.child.userload import build_model
from compiler.child.worker import Worker
from skerry.manifest import FORMAT, Classification, Interface, Preprocess, Tensor

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

class Stubborn(Net):
    def train(self, mode=True):
        return super().train(True)

class Random(Net):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)

class Named(Net):
    def forward(self, x):
        feature = self.body(x).mean((2, 3))
        return {"feature": feature, "scores": self.head(feature)}

class Greedy(Net):
    def forward(self, x):
        return super().forward(x) + torch.zeros(10**15).sum()

def compiled():
    return torch.compile(Net())
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NETS)
    return tmp_path


def loaded(root: Path, build: str, *outputs: str) -> dict[str, object]:
    names = list(outputs or ["scores"])
    return Worker(root, print).load(build=f"net.py:{build}", weights=None, shape=[1, 3, 8, 8], outputs=names)


def weights(root: Path, change) -> Path:
    torch.manual_seed(5)
    state = build_model(root, "net.py:Net", None).state_dict()
    torch.save(change(state), root / "w.pth")
    return root / "w.pth"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "model.backbone."])
def test_weights_under_a_wrappers_prefix_are_the_models_own(root, prefix):
    file = weights(root, lambda state: {prefix + name: value for name, value in state.items()})

    model = build_model(root, "net.py:Net", file)

    assert torch.equal(model.head.weight, torch.load(file)[f"{prefix}head.weight"])


def test_a_prefix_that_not_every_name_has_is_none(root):
    file = weights(root, lambda state: {("x." if "head" in name else "y.") + name: v for name, v in state.items()})

    with pytest.raises(UserError, match=r"missing body\.0\.weight, .* \(and \d more\); unexpected y\.body"):
        build_model(root, "net.py:Net", file)


def test_wrong_shapes_are_listed(root):
    file = weights(root, lambda state: {name: value.new_zeros(7) for name, value in state.items()})

    with pytest.raises(UserError) as refused:
        build_model(root, "net.py:Net", file)

    assert [name in str(refused.value) for name in ("body.0.weight", "body.0.bias", "body.1.weight")] == [True] * 3
    assert "(and 6 more)" in str(refused.value)


def test_a_checkpoint_says_what_it_holds(root):
    file = weights(root, lambda state: {"epoch": 3, "ema": state, "optimizer": {}})

    with pytest.raises(UserError, match=r"holds a dict of epoch, ema, optimizer; expected a state dict"):
        build_model(root, "net.py:Net", file)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on the way to its compiler
def test_a_compiled_model_is_what_it_wraps_and_takes_plain_weights(root):
    file = weights(root, lambda state: state)

    model = build_model(root, "net.py:compiled", file)

    assert type(model).__name__ == "Net"


def test_a_model_that_stays_in_training_mode_is_refused(root):
    with pytest.raises(UserError, match=r"in training mode after eval\(\): Stubborn, body, body\.0 \(and 3 more\)"):
        loaded(root, "Stubborn")


def test_a_model_that_answers_at_random_is_refused(root):
    with pytest.raises(UserError, match=r"two answers to one input \(scores differs\)"):
        loaded(root, "Random")


def test_a_dict_is_refused_with_its_names(root):
    with pytest.raises(UserError, match=r"returns 2 value\(s\) .* called feature, scores; the recipe names 1: scores"):
        loaded(root, "Named")


def test_a_dicts_order_is_the_recipes(root):
    assert loaded(root, "Named", "feature", "scores")["outputs"] == {"feature": [1, 4], "scores": [1, 2]}
    with pytest.raises(UserError, match="returns feature, scores, in this order"):
        loaded(root, "Named", "scores", "feature")


def test_a_failure_says_what_failed_and_not_the_size_alone(root):
    with pytest.raises(UserError, match=r"1x3x8x8: RuntimeError: .*allocate .*\(net\.py:\d+\); if its size is another"):
        loaded(root, "Greedy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_is_refused_on_its_first_frame(tmp_path, value):
    Image.new("RGB", (8, 8)).save(tmp_path / "dark.png")
    interface = Interface(
        format=FORMAT,
        name="net",
        version=1,
        task="classification",
        inputs=[Tensor("image", "float32", [1, 3, 8, 8])],
        outputs=[Tensor("scores", "float32", [1, 2])],
        preprocess=Preprocess(resize="stretch"),
        postprocess=Classification(scores="scores"),
        labels=[],
    )

    def run(_tensor):
        return {"scores": np.array([[1.0, value]], np.float32)}

    with pytest.raises(UserError, match=r"the model's scores of .*dark\.png is not finite"):
        write_reference([(str(tmp_path / "dark.png"), 0)], None, interface, run, print)
