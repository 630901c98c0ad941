"""A small detector of blood cells, trained here in minutes: real boxes of three classes, for average precision.

An anchor-free net: each cell of a map at stride 8 says for each class whether it lies in the middle of such a thing,
and where that thing's centre and sides are. Its outputs are what a detection recipe calls sigmoid, cxcywh, pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from skerry.execution.processing import Preprocessor
from skerry.manifest import FORMAT, Detection, Interface, Preprocess, Tensor

BCCD = Path("../shared/data/bccd")
LABELS = ["Platelets", "RBC", "WBC"]
HEIGHT, WIDTH, STRIDE = 288, 320, 8  # 480x640 fits in with a margin above and below
_MIDDLE = 0.4  # a cell belongs to a thing if it lies in this much of its sides around the centre
_EPOCHS, _BATCH, _RATE = 14, 8, 2e-3

Labelled = tuple[np.ndarray, np.ndarray, np.ndarray]  # frame; corners [N, 4] in pixels of it; classes [N]


class Cells(nn.Module):
    """[N, 3, HEIGHT, WIDTH] to scores [N, cells, 3], as logits, and boxes [N, cells, 4]."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16, 2), (16, 32, 2), (32, 48, 2), (48, 64, 1), (64, 64, 1), (64, 64, 1))
        self.trunk = nn.Sequential(*(layer for sizes in widths for layer in _layers(*sizes)))
        self.scores, self.offsets = nn.Conv2d(64, len(LABELS), 1), nn.Conv2d(64, 4, 1)
        nn.init.constant_(self.scores.bias, -4.0)
        rows, columns = torch.meshgrid(torch.arange(HEIGHT // STRIDE), torch.arange(WIDTH // STRIDE), indexing="ij")
        self.register_buffer("centres", (torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * STRIDE)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.trunk(x)
        scores, offsets = self.scores(seen).flatten(2).transpose(1, 2), self.offsets(seen).flatten(2).transpose(1, 2)
        middle = self.centres + offsets[..., :2] * STRIDE
        return scores, torch.cat([middle, torch.exp(offsets[..., 2:].clamp(-4, 4)) * 4 * STRIDE], -1)


def _layers(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def interface() -> Interface:
    """What a recipe of it says."""
    cells = HEIGHT // STRIDE * (WIDTH // STRIDE)
    return Interface(
        format=FORMAT,
        name="cells",
        version=1,
        task="detection",
        inputs=[Tensor("image", "float32", [1, 3, HEIGHT, WIDTH])],
        outputs=[Tensor("scores", "float32", [1, cells, len(LABELS)]), Tensor("boxes", "float32", [1, cells, 4])],
        preprocess=Preprocess(resize="letterbox", mean=(0.7, 0.6, 0.6), std=(0.2,)),
        postprocess=Detection(
            boxes="boxes",
            scores="scores",
            box_format="cxcywh",
            box_units="pixel",
            activation="sigmoid",
            min_score=0.05,
        ),
        labels=LABELS,
    )


def labelled(part: str) -> Iterator[Labelled]:
    """Images of "trainval" or "test"."""
    for name in (BCCD / "ImageSets" / "Main" / f"{part}.txt").read_text().split():
        things = [*ET.parse(BCCD / "Annotations" / f"{name}.xml").iter("object")]
        corners = [
            [float(t.findtext(f"bndbox/{side}", "0")) for side in ("xmin", "ymin", "xmax", "ymax")] for t in things
        ]
        classes = [LABELS.index(t.findtext("name", "")) for t in things]
        frame = np.asarray(Image.open(BCCD / "JPEGImages" / f"{name}.jpg").convert("RGB"))
        yield frame, np.array(corners, np.float32).reshape(-1, 4), np.array(classes)


def trained(kept: Path) -> Cells:
    """The net, from ``kept`` or trained and kept there."""
    net = Cells()
    if kept.is_file():
        net.load_state_dict(torch.load(kept, weights_only=True))
        return net.eval()
    torch.manual_seed(0)
    images, targets = _prepared(net)
    optimizer = torch.optim.AdamW(net.parameters(), _RATE)
    steps = _EPOCHS * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(images)).split(_BATCH):
            batch, wanted = images[chosen], targets[chosen]
            loss = _loss(*net(batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not torch.isfinite(loss):
        raise SystemExit(f"training of the cell detector ended at a loss of {loss}")
    torch.save(net.state_dict(), kept)
    return net.eval()


def _prepared(net: Cells) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and per cell the class (-1: none) and the box (centre and size, pixels of the input)."""
    described, images, targets = interface(), [], []
    preprocess = Preprocessor(described)
    for frame, corners, classes in labelled("trainval"):
        tensor = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
        geometry = preprocess(frame, tensor)
        scale, shift = geometry.scaled[1] / frame.shape[1], [geometry.left, geometry.top]
        boxes = (
            np.concatenate([corners[:, :2] + corners[:, 2:], corners[:, 2:] * 2 - corners[:, :2] * 2], 1) / 2 * scale
        )
        boxes[:, :2] += shift
        real = boxes[:, 2:].min(1) > 1  # some of the set's boxes have no width
        images.append(torch.from_numpy(tensor[0]))
        targets.append(_target(net.centres, torch.from_numpy(boxes[real]), torch.from_numpy(classes[real])))
    return torch.stack(images), torch.stack(targets)


def _target(centres: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """[cells, 5]: of the things in whose middle a cell lies, the smallest."""
    target = torch.cat([torch.full((len(centres), 1), -1.0), torch.zeros(len(centres), 4)], 1)
    for index in torch.argsort(boxes[:, 2:].prod(1), descending=True):
        reach = torch.clamp(boxes[index, 2:] * _MIDDLE / 2, min=STRIDE * 0.6)
        inside = ((centres - boxes[index, :2]).abs() <= reach).all(1)
        target[inside] = torch.cat([classes[index : index + 1].float(), boxes[index]])
    return target


def _loss(scores: torch.Tensor, boxes: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal loss (Lin et al., 2017) for the classes, relative distance of centre and sides for the boxes."""
    there = target[..., 0] >= 0
    wanted = F.one_hot(target[..., 0].clamp(min=0).long(), len(LABELS)).float() * there[..., None]
    plain = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    sure = torch.sigmoid(scores) * wanted + (1 - torch.sigmoid(scores)) * (1 - wanted)
    focal = ((1 - sure) ** 2 * plain * (0.25 + 0.5 * wanted)).sum() / there.sum()
    size = target[there][:, 3:]
    apart = (boxes[there] - target[there][:, 1:]) / torch.cat([size, size], 1)
    return focal + F.smooth_l1_loss(apart, torch.zeros_like(apart), beta=0.1)
