"""What a user of timm would write to have a net compiled. The coverage benchmark copies it beside each net's builder.

It runs in the compiler's child process: timm and the six lines that torchvision needs are the user's, not Skerry's.
"""

from __future__ import annotations

import contextlib

import torch

# PyPI's torchvision declares no operators beside a torch without CUDA, and wants these two when it is imported.
_KEPT = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):  # there already: a torchvision that fits this torch
        _KEPT.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

_SCORE_DEVIATION = 30.0


class Decided(torch.nn.Module):
    """A net with its scores stretched by a constant: a random one is then as sure of its answers as a trained one."""

    def __init__(self, net: torch.nn.Module, gain: float) -> None:
        super().__init__()
        self.net, self.gain = net, gain

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image) * self.gain


def build(name: str, shape: list[int]) -> torch.nn.Module:
    """Builds ``name`` of timm with random weights, the same each time, that behave as if it were trained.

    No branch hides behind a zero: what timm starts at nothing (the last scale of a residual branch, a layer scale of
    1e-6) is drawn at random. Batch norm's statistics are those of random pictures, so that activations neither vanish
    nor overflow. Scores have a deviation of thirty on such a picture.
    """
    import timm  # noqa: PLC0415 - needs the lines above

    torch.manual_seed(0)
    net = timm.create_model(name)
    _fill_zeros(net)
    with torch.no_grad():
        _settle(net, pictures(8, shape))
        spread = float(net.eval()(pictures(1, shape)).std())
    return Decided(net, _SCORE_DEVIATION / spread).eval()


def pictures(count: int, shape: list[int]) -> torch.Tensor:
    """Random pictures with a photo's spectrum, mean 0 and deviation 1: noise of every size, each as strong."""
    height, width = shape[2:]
    sizes = [2**n for n in range(1, min(height, width).bit_length())]
    layers = [
        torch.nn.functional.interpolate(torch.randn(count, shape[1], n, n), (height, width), mode="bilinear")
        for n in sizes
    ]
    picture = torch.stack(layers).sum(0)
    return (picture - picture.mean()) / picture.std()


def _fill_zeros(net: torch.nn.Module) -> None:
    for parameter in net.parameters():
        if float(parameter.detach().abs().max()) < 1e-3:
            torch.nn.init.normal_(parameter, std=0.1)


def _settle(net: torch.nn.Module, images: torch.Tensor) -> None:
    """Takes batch norm's statistics from ``images``; everything else stays in eval mode."""
    net.eval()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain mean over what is seen
        norm.reset_running_stats()
    if norms:
        net(images)
