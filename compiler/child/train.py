"""Fine-tuning a pruned net, by labels, by the dense net's answers, or both.

The pruned graph was taken in evaluation; for training its batch norms and dropouts are switched, and nothing else.
Everything random comes from one seed, so that epochs (not seconds) give the same weights again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import fx
from torch.nn import functional

from skerry.clock import SystemClock
from skerry.manifest import Interface

from .pictures import UNLABELLED, Batch, Pictures
from .pruning.graph import operator, set_argument, tensors_of

_SWITCHES = {
    "batch_norm": "training",
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), "train"),
}
_WARM_UP = 0.05  # of all steps, while the rate rises: the first steps after pruning are steep


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to fine-tune.

    Attributes:
        train: (path, frame number, class), or `UNLABELLED` for the class where only the dense net's answer counts.
        held_out: the same, never trained on: the epoch that answers these best is kept.
        seconds: ends earlier, after the step that is under way; the result depends on the machine's speed then.
        distillation: share of the loss that comes from the dense net's answers.
        temperature: softens both answers (Hinton et al., 2015).
        mirror: shows every other picture mirrored.
    """

    train: list[tuple[str, int, int]]
    held_out: list[tuple[str, int, int]]
    epochs: int = 10
    seconds: float | None = None
    batch: int = 32
    rate: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    distillation: float = 0.5
    temperature: float = 2.0
    mirror: bool = True
    seed: int = 0
    threads: int = 1


class Trained(msgspec.Struct, frozen=True):
    """What came of it. Scores are top-1 in percent on the held-out samples, or minus the distance from the dense net.

    Attributes:
        epochs: done, the last one perhaps in part.
        kept: the epoch whose weights were kept; 0 is before any.
        scores: on the held-out samples, before and after each epoch.
        dense: the dense net's own score there.
    """

    epochs: int
    kept: int
    scores: list[float]
    dense: float


class Trainer:
    """Fine-tunes a pruned graph that was taken at ``how.batch`` pictures."""

    def __init__(
        self,
        pruned: fx.GraphModule,
        dense: torch.nn.Module,
        interface: Interface,
        how: Training,
        progress: Callable[[str], None],
    ) -> None:
        self._dense, self._how, self._progress = dense, how, progress
        self._train, self._held_out = Pictures(how.train, interface), Pictures(how.held_out, interface)
        self._answering, self._learning = pruned, switched(pruned)
        self._classifies = interface.task == "classification" and any(s[2] != UNLABELLED for s in how.train)
        self._random = np.random.default_rng(how.seed)

    def run(self) -> Trained:
        """Trains; the graph holds the best weights afterwards."""
        torch.manual_seed(self._how.seed)
        torch.set_num_threads(self._how.threads)
        try:
            with torch.no_grad():
                dense = self._score(self._dense)
                scores = [self._score(self._answering)]
            best, kept = _state(self._answering), 0
            learned = [p for p in self._learning.parameters() if p.is_floating_point()]
            self._learning.requires_grad_()
            for epoch in self._epochs(learned):
                with torch.no_grad():
                    scores.append(self._score(self._answering))
                self._progress(f"fine-tuning, epoch {epoch}: {scores[-1]:.2f} held out, dense {dense:.2f}")
                if scores[-1] > max(scores[:-1]):
                    best, kept = _state(self._answering), epoch
            _restore(self._answering, best)
            return Trained(len(scores) - 1, kept, scores, dense)
        finally:
            self._learning.requires_grad_(requires_grad=False)
            torch.set_num_threads(1)

    def _epochs(self, learned: Sequence[torch.nn.Parameter]) -> Iterator[int]:
        """Trains one epoch after the other, and yields after each."""
        how, clock = self._how, SystemClock()
        optimizer = _optimizer(learned, how)
        per_epoch = max(1, len(self._train) // how.batch)
        began, spent = clock.monotonic(), 0.0
        for epoch in range(1, how.epochs + 1):
            order = self._random.permutation(len(self._train))
            for step in range(per_epoch):
                done = ((epoch - 1) * per_epoch + step) / (how.epochs * per_epoch)
                _set_rate(optimizer, how.rate, max(done, spent))
                chosen = order[step * how.batch : (step + 1) * how.batch].tolist()
                mirrored = (self._random.random(len(chosen)) < 0.5).tolist() if how.mirror else [False] * len(chosen)
                loss = self._loss(self._train.batch(chosen, how.batch, mirrored))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(learned, 1.0)
                optimizer.step()
                spent = (clock.monotonic() - began) / how.seconds if how.seconds else 0.0
                self._progress(f"fine-tuning, epoch {epoch}, step {step + 1} of {per_epoch}: loss {loss.item():.3f}")
                if spent >= 1:
                    break
            yield epoch
            if spent >= 1:
                return

    def _loss(self, batch: Batch) -> torch.Tensor:
        found = tensors_of(self._learning(batch.images))
        with torch.no_grad():
            wanted = tensors_of(self._dense(batch.images))
        if not self._classifies:
            return torch.stack(
                [_apart(f[: batch.count], w[: batch.count]) for f, w in zip(found, wanted, strict=True)]
            ).mean()
        share, heat = self._how.distillation, self._how.temperature
        scores, theirs = found[0][: batch.count], wanted[0][: batch.count]
        loss = scores.new_zeros(())
        if share > 0:
            soft = functional.kl_div(
                functional.log_softmax(scores / heat, -1),
                functional.log_softmax(theirs / heat, -1),
                reduction="batchmean",
                log_target=True,
            )
            loss = loss + share * heat**2 * soft
        known = batch.labels[: batch.count] != UNLABELLED
        if share < 1 and bool(known.any()):
            loss = loss + (1 - share) * functional.cross_entropy(scores[known], batch.labels[: batch.count][known])
        return loss

    def _score(self, model: torch.nn.Module) -> float:
        size, good, total = self._how.batch, 0.0, 0
        for start in range(0, len(self._held_out), size):
            chosen = list(range(start, min(start + size, len(self._held_out))))
            batch = self._held_out.batch(chosen, size, [False] * len(chosen))
            found = tensors_of(model(batch.images))
            if self._classifies:
                good += float((found[0].argmax(-1) == batch.labels)[: batch.count].sum()) * 100
            else:
                wanted = tensors_of(self._dense(batch.images))
                apart = [_apart(f[: batch.count], w[: batch.count]) for f, w in zip(found, wanted, strict=True)]
                good -= float(torch.stack(apart).mean()) * batch.count
            total += batch.count
        return good / max(total, 1)


def switched(module: fx.GraphModule) -> fx.GraphModule:
    """A second graph over the same tensors: batch norm takes its statistics from the batch, and dropout drops."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        argument = _SWITCHES.get(operator(node)) if node.op == "call_function" else None
        if argument is not None:
            set_argument(node, argument, value=True)
    return fx.GraphModule(module, graph)


def _optimizer(learned: Sequence[torch.nn.Parameter], how: Training) -> torch.optim.Optimizer:
    """Decay is for what multiplies, not for scales and biases."""
    groups = [
        {"params": [p for p in learned if p.dim() > 1], "weight_decay": how.weight_decay},
        {"params": [p for p in learned if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if how.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=how.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=how.rate)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, done: float) -> None:
    """Up, then down along a cosine (Loshchilov & Hutter, 2017)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(done / _WARM_UP + 0.01, 1.0, (1 + math.cos(math.pi * min(done, 1.0))) / 2 + 1e-3)


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared distance over the squared length of what was wanted."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


def _state(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def _restore(module: fx.GraphModule, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            value.copy_(state[name])
