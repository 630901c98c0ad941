"""What each unit costs and buys: the damage that quantizing it does alone, the time that it saves in the whole. Pure.

*Damage* of a classifier: the mean Kullback-Leibler divergence of its answers from fp32's; of a detector: noise over
signal of its outputs, averaged. *Gain*: the whole model's time with the unit put back to fp32, over that of the whole
model quantized. Measured so, what it costs to go from one precision to the other is in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skerry.execution.backend import Tensors
from skerry.execution.processing import activate
from skerry.manifest import Classification, Interface

Floats = NDArray[np.float64]

_LEAST = 1e-9  # of a probability, and of an error
_PARTS = 4
_WORST = 1e3  # damage of an output that is not finite


def damage(interface: Interface, pairs: Iterable[tuple[Tensors, Tensors]]) -> float:
    """Over pairs of fp32's outputs and the model's, one a sample."""
    post = interface.postprocess
    if isinstance(post, Classification):
        each = [divergence(r[post.scores], m[post.scores], post.activation) for r, m in pairs]
        return min(_WORST, float(np.mean(each)))
    return _noise([t.name for t in interface.outputs], pairs)


def divergence(reference: NDArray[np.generic], model: NDArray[np.generic], activation: str) -> float:
    """KL of two score vectors in nats: of distributions over labels, or summed over labels that are each yes or no."""
    if not np.isfinite(np.asarray(model, np.float64)).all():
        return _WORST
    p, q = (_probabilities(scores, activation) for scores in (reference, model))
    terms = p * np.log(p / q)
    if activation == "sigmoid":
        terms = terms + (1 - p) * np.log((1 - p) / (1 - q))
    return max(0.0, float(terms.sum()))


def _probabilities(scores: NDArray[np.generic], activation: str) -> Floats:
    """Never quite 0 or 1. Without an activation, scores that already are a distribution stay one."""
    flat = np.asarray(scores, np.float32).reshape(-1)
    if activation == "none" and flat.min() >= 0 and math.isclose(float(flat.sum()), 1.0, abs_tol=1e-2):
        found = flat
    else:
        found = activate(flat, "softmax" if activation == "none" else activation)
    return np.clip(np.asarray(found, np.float64), _LEAST, 1 - _LEAST)


def _noise(outputs: Sequence[str], pairs: Iterable[tuple[Tensors, Tensors]]) -> float:
    """Noise power over signal power, pooled over the samples, averaged over the outputs."""
    powers = np.zeros((len(outputs), 2))
    for reference, model in pairs:
        for number, name in enumerate(outputs):
            r, m = np.asarray(reference[name], np.float64), np.asarray(model[name], np.float64)
            powers[number] += (float((r * r).sum()), float(((r - m) ** 2).sum()))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(powers[:, 1] == 0.0, 0.0, powers[:, 1] / powers[:, 0])
    return float(np.minimum(np.nan_to_num(shares, nan=_WORST, posinf=_WORST), _WORST).mean())


@dataclass(frozen=True)
class Gain:
    """Time that a unit saves by being quantized, as a share of the whole quantized model's; negative if it costs.

    Attributes:
        error: standard error of ``value``.
    """

    value: float
    error: float


def gain(without: Sequence[float], everything: Sequence[float]) -> Gain:
    """From times that were taken in turn: the model with one unit in fp32, and with all quantized."""
    ratios = np.array(without, np.float64) / np.array(everything, np.float64) - 1.0
    spread = 1.4826 * float(np.median(np.abs(ratios - np.median(ratios))))  # of a normal, by its median deviation
    alone = 1.2533 * spread / math.sqrt(len(ratios))  # the median's standard error, were rounds independent
    parts = [float(np.median(part)) for part in np.array_split(ratios, _PARTS)]  # a busy machine makes them differ
    return Gain(float(np.median(ratios)), max(alone, float(np.std(parts, ddof=1)) / math.sqrt(_PARTS)))


def settle(gains: Sequence[Gain], expected: Sequence[float]) -> list[float]:
    """Gains drawn towards what is expected of each unit, by as much as they are noise.

    A unit of a deep net is a hundredth of its time, and so is the noise of a measurement. Empirical Bayes, with the
    spread between units by moments (DerSimonian and Laird, Controlled Clinical Trials 7:177, 1986): how far units
    really differ from what is expected of them, judged by the ones that were measured well.
    """
    found, errors = np.array([g.value for g in gains]), np.array([max(g.error, _LEAST) for g in gains])
    prior, precision = np.array(expected, np.float64), 1.0 / errors**2
    excess = float((precision * (found - prior) ** 2).sum()) - len(found)
    real = max(0.0, excess / float(precision.sum()))
    return [float(v) for v in prior + real / (real + errors**2) * (found - prior)]


def by_macs(macs: Sequence[int], total: float) -> list[float]:
    """What is expected of each unit: its share of the multiplications, of the total time saved."""
    every = sum(macs)
    return [total * (count / every if every else 1 / len(macs)) for count in macs]
