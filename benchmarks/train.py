"""Trains the benchmarks' nets: ``python -m benchmarks.train NAME…``; a killed run goes on behind its last epoch.

Three quarters of an hour for all of them on one thread. The weights stay under build/bench/weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import data, nets
from benchmarks.data import Pictures
from benchmarks.release import photos
from skerry.config import read_toml


@dataclass(frozen=True)
class Plan:
    """How one net is trained.

    Attributes:
        start: a file of weights to start from; its scores' layer is left out.
        shift: pixels by which pictures are moved at random.
    """

    train: Callable[[], Pictures]
    test: Callable[[], Pictures]
    epochs: int
    batch: int
    rate: float
    shift: int
    start: Callable[[], Path] | None = None


def _clothing(name: str, *parts: str) -> Pictures:
    size = int(read_toml(Path(f"benchmarks/nets/{name}.toml"))["input"]["shape"][2])
    return data.clothing(parts, size)


PLANS = {
    "fashion_resnet": Plan(lambda: data.fashion("train"), lambda: data.fashion("t10k"), 3, 128, 4e-3, 2),
    "fashion_vit": Plan(lambda: data.fashion("train"), lambda: data.fashion("t10k"), 5, 128, 2e-3, 2),
    "clothing_mobilenetv2": Plan(
        lambda: _clothing("clothing_mobilenetv2", "train"),
        lambda: _clothing("clothing_mobilenetv2", "test", "validation"),
        5,
        32,
        1e-3,
        8,
        lambda: photos().parent / "weights" / "mobilenet_v2-b0353104.pth",
    ),
    "clothing_resnet18": Plan(  # from nothing: no package holds its weights
        lambda: _clothing("clothing_resnet18", "train"),
        lambda: _clothing("clothing_resnet18", "test", "validation"),
        12,
        32,
        1e-3,
        8,
    ),
}


def trained(name: str) -> Path:
    """The weights of a net, trained if they are not there yet."""
    file = nets.weights(name)
    if not file.is_file():
        _train(name, file)
    return file


def build(folder: Path) -> nn.Module:
    """The net of a recipe's folder."""
    recipe = read_toml(folder / "recipe.toml")
    file, _, function = recipe["model"]["build"].partition(":")
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"net_{folder.name}", folder / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return getattr(module, function)()


def _train(name: str, file: Path) -> None:
    plan, folder = PLANS[name], nets.folder(name)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = build(folder).to(memory_format=torch.channels_last)
    if plan.start is not None:
        old = torch.load(plan.start(), weights_only=True)
        fits = {k: v for k, v in old.items() if net.state_dict()[k].shape == v.shape}
        net.load_state_dict(fits, strict=False)
    spec = read_toml(folder / "recipe.toml")["preprocess"]
    learn(net, plan, _Normal(spec["mean"], spec["std"]), file)
    print(f"{name}: {accuracy(net, plan.test(), _Normal(spec['mean'], spec['std'])):.2%} of the tests", flush=True)


def learn(net: nn.Module, plan: Plan, normal: _Normal, file: Path) -> None:
    """AdamW on one cycle, with labels smoothed by a tenth; writes ``file`` at the end, and beside it each epoch."""
    pictures, part = plan.train(), file.with_suffix(".part")
    steps = len(pictures.labels) // plan.batch
    slow = torch.optim.AdamW(net.parameters(), lr=plan.rate, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(slow, plan.rate, epochs=plan.epochs, steps_per_epoch=steps)
    done = 0
    if part.is_file():
        state = torch.load(part, weights_only=True)
        net.load_state_dict(state["net"])
        slow.load_state_dict(state["slow"])
        cycle.load_state_dict(state["cycle"])
        done = state["epoch"]
    file.parent.mkdir(parents=True, exist_ok=True)
    for epoch in range(done, plan.epochs):
        began, loss = time.monotonic(), _epoch(net.train(), plan, pictures, normal, slow, cycle, epoch)
        state = {"net": net.state_dict(), "slow": slow.state_dict(), "cycle": cycle.state_dict(), "epoch": epoch + 1}
        torch.save(state, part)
        print(f"{file.stem}: epoch {epoch + 1}, loss {loss:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    torch.save(net.eval().state_dict(), file)
    part.unlink()


def _epoch(net: nn.Module, plan: Plan, pictures: Pictures, normal: _Normal, slow: Any, cycle: Any, epoch: int) -> float:
    random = np.random.default_rng(epoch)
    order, losses = random.permutation(len(pictures.labels)), []
    for start in range(0, len(order) - plan.batch + 1, plan.batch):
        chosen = order[start : start + plan.batch]
        images = _varied(normal(pictures.images[chosen]), plan.shift, random)
        with torch.autocast("cpu", torch.bfloat16):
            scores = net(images.contiguous(memory_format=torch.channels_last))
        labels = torch.from_numpy(pictures.labels[chosen]).long()
        loss = nn.functional.cross_entropy(scores.float(), labels, label_smoothing=0.1)
        slow.zero_grad()
        loss.backward()
        slow.step()
        cycle.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _varied(images: torch.Tensor, shift: int, random: np.random.Generator) -> torch.Tensor:
    """Mirrors half of the pictures, and moves all by up to ``shift``."""
    mirrored = torch.from_numpy(random.random(len(images)) < 0.5)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    down, right = random.integers(-shift, shift + 1, 2)
    return images.roll((int(down), int(right)), (2, 3))


class _Normal:
    """From pictures to the net's input, as the recipe says."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self._mean, self._std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """Pictures [N, H, W(, 3)] to [N, C, H, W]."""
        tensor = torch.from_numpy(images).float() / 255
        tensor = tensor[:, None] if images.ndim == 3 else tensor.permute(0, 3, 1, 2)
        return (tensor - self._mean) / self._std


def accuracy(net: nn.Module, pictures: Pictures, normal: _Normal) -> float:
    """Share of the pictures that the net names rightly."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(pictures.labels), 250):
            found = net.eval()(normal(pictures.images[start : start + 250])).argmax(1).numpy()
            right += int((found == pictures.labels[start : start + 250]).sum())
    return right / len(pictures.labels)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("names", nargs="*", default=list(PLANS))
    for each in options.parse_args().names:
        print(trained(each), flush=True)
