"""The search on a simulated variant: its units cost and buy what the test says, its frames and answers are real."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny
from passes import Passes
from PIL import Image

from compiler.candidate import Work
from compiler.data import dataset
from compiler.data.dataset import Dataset
from compiler.data.samples import Sample
from compiler.search.budget import Budget
from compiler.search.choice import front
from compiler.search.outcome import Outcome
from compiler.search.search import Effort, Search
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.errors import MachineBusy
from skerry.execution.turns import Timed
from skerry.manifest import Detection, Interface, Preprocess, Tensor

QUICK = Effort(0.001, 0.001, 0.001)
NO_LIMIT = Budget()


@dataclass(frozen=True)
class Unit:
    """What a unit does to the simulated model: time in either precision, and noise on the scores if quantized."""

    name: str
    float_ms: float
    int8_ms: float
    noise: float
    macs: int = 100

    @property
    def nodes(self) -> tuple[str, ...]:
        return (f"{self.name}/conv", f"{self.name}/relu")


PLAIN = [Unit(f"plain{i}", 1.0, 0.5, 0.01) for i in range(5)]
DESTROYED = Unit("destroyed", 1.0, 0.5, 2.0)
SLOWED = Unit("slowed", 1.0, 1.8, 0.001)


@dataclass
class Simulated:
    """A variant whose model file is the list of the units that stay in fp32."""

    folder: Path
    units: Sequence[Unit]
    here: bool = True
    backend: str = "onnxrt"
    pruned: float = 0.0
    scale: float = 1.0  # of the time
    had_processor: float = 1.0
    refuses: Callable[[Collection[str]], str | None] = lambda _keep: None
    built: list[frozenset[str]] = field(default_factory=list)
    jitter: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    @property
    def float_model(self) -> Path:
        return self.build([unit.name for unit in self.units])

    def build(self, keep_float: Collection[str], *, draft: bool = False) -> Path:
        keep = sorted(keep_float)
        path = self.folder / f"{zlib.crc32(str((keep, self.pruned)).encode()):08x}.json"
        path.write_text(json.dumps({"keep": keep, "pruned": self.pruned}))
        self.built += [] if draft else [frozenset(keep)]
        return path

    def run(self, model: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        quantized = [unit for unit in self.units if unit.name not in self.kept(model)]

        def answer(tensor: np.ndarray) -> dict[str, np.ndarray]:
            scores = tensor.reshape(1, -1) @ tiny.weights()
            for unit in quantized:
                random = np.random.default_rng(zlib.crc32(tensor.tobytes() + unit.name.encode()))
                scores = scores + unit.noise * random.normal(0, 1, scores.shape)
            return {"scores": scores.astype(np.float32)}

        return answer

    def time(self, models: Sequence[Path], rounds: int) -> Timed:
        assert self.here
        return Timed([[self.once(model) for _ in range(rounds)] for model in models], self.had_processor)

    def once(self, model: Path) -> float:
        kept = self.kept(model)
        scale = self.scale if json.loads(model.read_text())["pruned"] else 1.0
        whole = sum(unit.float_ms if unit.name in kept else unit.int8_ms for unit in self.units)
        return whole * scale * float(self.jitter.lognormal(0, 0.02))

    def kept(self, model: Path) -> list[str]:
        return json.loads(model.read_text())["keep"]

    def refused(self, model: Path) -> str | None:
        return self.refuses(self.kept(model))


def colours(folder: Path, count: int) -> Path:
    """Frames with more or less of one colour, so that a little noise turns some answers."""
    random, described = np.random.default_rng(8), tiny.PREPROCESS
    for number in range(count):
        channel, margin = number % 3, random.uniform(-0.01, 0.3)
        levels = 0.3 + random.normal(0, 0.1, (8, 8, 3)) + margin * (np.arange(3) == channel)
        frame = np.clip(255 * (np.array(described.mean) + np.array(described.std) * levels), 0, 255)
        path = folder / tiny.COLOURS[channel] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = colours(tmp_path_factory.mktemp("colours"), 450)
    return dataset.split(dataset.read(folder, interface()), set())


def interface() -> Interface:
    return tiny.Tiny().interface()


@dataclass
class Bench:
    """A search to be run, with its work directory."""

    folder: Path
    data: Dataset | Sequence[Sample]
    passes: Passes = field(default_factory=Passes)
    said: list[str] = field(default_factory=list)

    def search(self, *rungs: Simulated, budget: Budget = NO_LIMIT, **options: object) -> Search:
        work = Work(self.folder / "work", Disk(), SystemClock(), self.passes)
        say, view = options.pop("say", self.said.append), options.pop("view", interface())
        return Search("int8", rungs, view, self.data, budget, work, Disk(), say, QUICK, **options)

    def subject(self, units: Sequence[Unit], **options: object) -> Simulated:
        folder = self.folder / "models"
        folder.mkdir(exist_ok=True)
        return Simulated(folder, units, **options)

    def run(self, units: Sequence[Unit], budget: Budget = NO_LIMIT, **options: object) -> Outcome:
        return self.search(self.subject(units, **options), budget=budget).run()


@pytest.fixture
def bench(tmp_path: Path, labelled: Dataset) -> Bench:
    return Bench(tmp_path, labelled)


# What is chosen


def test_the_unit_that_is_destroyed_and_the_one_that_is_slowed_stay_in_fp32(bench: Bench) -> None:
    found = bench.run([*PLAIN[:2], DESTROYED, *PLAIN[2:], SLOWED], Budget(max_drop=2.0))

    assert found.ships
    assert found.keep_float == ("destroyed", "slowed")
    assert found.nodes == ("destroyed/conv", "destroyed/relu", "slowed/conv", "slowed/relu")
    assert found.time is not None
    assert found.time.median == pytest.approx((5 * 0.5 + 1 + 1) / 7, abs=0.02)
    assert found.accuracy is not None
    assert found.accuracy.samples == len(bench.data.report)
    assert found.accuracy.drop_at_most <= 2.0
    assert found.refusal is None


def test_every_point_was_built_and_measured_and_one_is_chosen(bench: Bench) -> None:
    subject = bench.subject([*PLAIN, DESTROYED, SLOWED])
    search = bench.search(subject, budget=Budget(max_drop=2.0))

    found = search.run()

    assert len(found.points) == len(search.trials) == len(set(search.trials))
    assert sum(point.chosen for point in found.points) == 1
    assert {trial.keep for trial in search.trials} <= set(subject.built)
    assert frozenset() in {trial.keep for trial in search.trials}  # what a user would get without a search
    best = front(list(search.trials))
    assert len(best) > 1
    assert all(a.cost < b.cost and a.drop > b.drop for a, b in itertools.pairwise(best))


@pytest.mark.slow
def test_report_samples_are_read_for_the_choice_alone(bench: Bench) -> None:
    """Answers are kept by samples: what was asked about the report samples is fp32 and one model."""
    search = bench.search(bench.subject([*PLAIN, DESTROYED]), budget=Budget(max_drop=2.0))
    read: list[tuple[str, ...]] = []
    answers = search._measure.answers

    def watched(subject: object, model: Path, samples: Sequence[Sample]) -> object:
        read.append((model.name, *sorted(s.digest for s in samples)))
        return answers(subject, model, samples)

    search._measure.answers = watched
    found = search.run()

    report = tuple(sorted(s.sample.digest for s in bench.data.report))
    asked = [model for model, *samples in read if tuple(samples) == report]
    assert asked == [search.rungs[0].float_model.name, found.model.name]
    seen = {digest for _, *samples in read if tuple(samples) != report for digest in samples}
    assert not seen & set(report)


def test_what_quantizing_does_not_make_faster_ships_fp32_and_says_so(bench: Bench) -> None:
    found = bench.run([Unit(f"u{i}", 1.0, 0.985, 0.001) for i in range(4)])

    assert not found.ships
    assert found.refusal is None
    assert found.words[0].startswith("int8: quantizing does not pay here: of")
    assert "of fp32's time" in found.words[0]
    assert found.words[0].endswith("; ships fp32")
    assert not any(point.chosen for point in found.points)


def test_what_quantizing_only_hurts_ships_fp32_too(bench: Bench) -> None:
    found = bench.run([Unit(f"u{i}", 1.0, 0.5, 3.0) for i in range(4)], Budget(max_drop=1.0))

    assert not found.ships
    assert "it loses" in found.words[0]


@pytest.mark.slow
def test_a_model_that_the_recipes_own_limits_refuse_is_not_chosen(bench: Bench) -> None:
    def refuses(keep: Collection[str]) -> str | None:
        return None if "plain2" in keep else "outputs differ from torch: 9.0 dB, at least 15 wanted"

    found = bench.run(PLAIN, Budget(max_drop=3.0), refuses=refuses)

    assert found.ships
    assert "plain2" in found.keep_float


@pytest.mark.slow
def test_a_pruned_model_stands_beside_the_whole_one(bench: Bench) -> None:
    whole, pruned = bench.subject(PLAIN), bench.subject(PLAIN, pruned=0.3, scale=0.6)

    found = bench.search(whole, pruned, budget=Budget(max_drop=3.0)).run()

    assert found.rung == 1
    assert found.time is not None
    assert found.time.median == pytest.approx(0.3, abs=0.02)
    assert {point.pruned for point in found.points} == {0.0, 0.3}


# Budgets


@pytest.mark.slow
def test_too_few_samples_are_refused_with_the_number_that_is_missing(bench: Bench) -> None:
    found = bench.run(PLAIN, Budget(max_drop=0.05))

    assert found.refusal is not None or not found.ships
    if found.refusal is not None:
        assert found.accuracy is not None
        assert found.accuracy.needs_more is not None
        assert f"cannot be shown, needs {found.accuracy.needs_more:,} more samples (" in found.refusal


def test_harmless_quantizing_on_few_samples_cannot_be_shown(bench: Bench) -> None:
    harmless = [replace(unit, noise=1e-6) for unit in PLAIN]

    found = bench.run(harmless, Budget(max_drop=0.1))

    assert found.accuracy is not None
    assert found.accuracy.drop == 0.0
    assert found.accuracy.needs_more is not None
    assert len(bench.data.report) + found.accuracy.needs_more == pytest.approx(2995, rel=0.02)  # the rule of three
    assert found.refusal is not None
    assert "cannot be shown, needs" in found.refusal


def test_whoever_set_no_limit_is_told_and_not_refused(bench: Bench) -> None:
    bench.data = cut(bench.data, 60)

    found = bench.run([replace(unit, noise=1e-6) for unit in PLAIN])

    assert found.ships
    assert found.refusal is None
    assert found.accuracy is not None
    assert found.accuracy.budget is None
    assert "cannot be shown" in found.words[-1]


def cut(data: Dataset, report: int) -> Dataset:
    return Dataset(ranking=data.ranking, search=data.search, report=data.report[:report])


@pytest.mark.slow
def test_a_latency_that_quantizing_reaches_is_held(bench: Bench) -> None:
    found = bench.run(PLAIN, Budget(max_drop=3.0, max_latency_ms=3.0))

    assert found.ships
    assert found.refusal is None


def test_a_latency_that_nothing_reaches_is_refused_with_the_best(bench: Bench) -> None:
    found = bench.run(PLAIN, Budget(max_drop=3.0, max_latency_ms=2.0))

    assert not found.ships
    assert found.refusal is not None
    assert found.refusal.startswith("2 ms cannot be held: fp32 takes")
    assert "ms at most, 2 allowed" in found.refusal


# What is not known


def test_without_labels_candidates_are_chosen_and_nothing_is_claimed(bench: Bench) -> None:
    bench.data = [s.sample for s in bench.data.report[:60]]

    found = bench.run([*PLAIN, DESTROYED, SLOWED])

    assert found.ships
    assert {"destroyed", "slowed"} <= set(found.keep_float)
    assert found.accuracy is None
    assert "not shown, there are no labelled samples" in found.words[-1]


def test_what_this_machine_cannot_run_is_searched_by_its_answers_and_not_timed(bench: Bench) -> None:
    found = bench.run([*PLAIN, DESTROYED, SLOWED], Budget(max_drop=2.0), here=False)

    assert found.ships
    assert "destroyed" in found.keep_float
    assert "slowed" not in found.keep_float  # nobody could know
    assert found.time is None
    assert {point.times_fp32 for point in found.points} == {None}
    assert "not timed, this machine cannot run it" in found.words[0]


def test_a_model_without_units_is_fp32(bench: Bench) -> None:
    found = bench.run([])

    assert not found.ships
    assert "there is nothing to quantize" in found.words[0]


def test_a_model_of_one_unit_is_searched_like_any(bench: Bench) -> None:
    assert bench.run([Unit("only", 1.0, 0.5, 0.001)], Budget(max_drop=3.0)).keep_float == ()


# Boxes


@dataclass
class Detecting(Simulated):
    """Finds the bright square in each quarter of a frame, the worse the more noise."""

    def run(self, model: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        quantized = [unit for unit in self.units if unit.name not in self.kept(model)]

        def answer(tensor: np.ndarray) -> dict[str, np.ndarray]:
            random = np.random.default_rng(zlib.crc32(tensor.tobytes()))
            boxes, scores = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 2), np.float32)
            for quarter in range(4):
                top, left = 16 * (quarter // 2), 16 * (quarter % 2)
                rows, columns = np.nonzero(tensor[0, 0, top : top + 16, left : left + 16] > 0.6)
                if len(rows):
                    edges = [columns.min() + left, rows.min() + top, columns.max() + left + 1, rows.max() + top + 1]
                    shift = sum(unit.noise * random.normal(0, 1, 4) for unit in quantized)
                    boxes[0, quarter] = np.array(edges) / 32 + shift
                    scores[0, quarter, 1] = random.uniform(0.6, 1.0)
            return {"boxes": boxes, "scores": scores}

        return answer


def squares(folder: Path, count: int) -> Path:
    """Frames of 32 by 32 with a bright square in some of the quarters, and VOC's XML beside them."""
    random = np.random.default_rng(9)
    folder.mkdir()
    for number in range(count):
        frame, things = random.integers(0, 60, (32, 32, 3), dtype=np.uint8), []
        for quarter in [0, *np.flatnonzero(random.random(3) < 0.6) + 1]:
            size = int(random.integers(5, 10))
            x, y = (int(v) + 1 for v in random.integers(0, 15 - size, 2))
            x, y = x + 16 * (quarter % 2), y + 16 * (quarter // 2)
            frame[y : y + size, x : x + size] = 220
            box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + size}</xmax><ymax>{y + size}</ymax>"
            things.append(f"<object><name>square</name><bndbox>{box}</bndbox></object>")
        Image.fromarray(frame).save(folder / f"{number}.bmp")
        (folder / f"{number}.xml").write_text(f"<annotation>{''.join(things)}</annotation>")
    return folder


def detector() -> Interface:
    return msgspec.structs.replace(
        interface(),
        task="detection",
        inputs=[Tensor("image", "float32", [1, 3, 32, 32])],
        outputs=[Tensor("boxes", "float32", [1, 4, 4]), Tensor("scores", "float32", [1, 4, 2])],
        preprocess=Preprocess(resize="stretch"),
        postprocess=Detection(boxes="boxes", scores="scores", background=0),
        labels=["nothing", "square"],
    )


@pytest.mark.slow
def test_a_detector_is_searched_by_the_noise_of_its_boxes_and_held_to_ap50(tmp_path: Path) -> None:
    data = dataset.split(dataset.read(squares(tmp_path / "squares", 260), detector()), set())
    bench, units = Bench(tmp_path, data), [*(replace(u, noise=0.001) for u in PLAIN[:3]), Unit("blind", 1, 0.5, 0.3)]
    (tmp_path / "models").mkdir()
    subject = Detecting(tmp_path / "models", units)
    search = bench.search(subject, budget=Budget(max_drop=3.0), view=detector())

    found = search.run()

    assert found.ships
    assert found.keep_float == ("blind",)
    assert found.accuracy is not None
    assert found.accuracy.metric == "AP50"
    assert found.accuracy.reference > 95
    assert max(point.drop for point in found.points) > 20
    bench.data = [s.sample for s in data.report[:40]]
    assert bench.search(subject, view=detector()).run().keep_float == ("blind",)


# A busy machine


def test_what_a_busy_machine_cannot_decide_is_refused_and_measured_anew_on_a_quiet_one(bench: Bench) -> None:
    units, budget = [Unit(f"slight{n}", 1.0, 0.9, 0.01) for n in range(4)], Budget(max_drop=2.0)

    with pytest.raises(MachineBusy, match="int8: the machine is too busy to time on: 19% of a processor"):
        bench.run(units, budget, had_processor=0.19)
    bench.passes.ran.clear()
    found = bench.run(units, budget)

    assert found.ships
    assert "damage" not in bench.passes.ran


def test_what_a_busy_machine_can_decide_is_decided_and_kept(bench: Bench) -> None:
    assert bench.run([*PLAIN], Budget(max_drop=2.0), had_processor=0.19).ships
    chosen = [name for name in bench.passes.ran if name == "times"]
    bench.passes.ran.clear()

    assert bench.run([*PLAIN], Budget(max_drop=2.0)).ships
    assert len(bench.passes.ran) < len(chosen)
    assert set(bench.passes.ran) <= {"times"}  # of candidates that are too near to fp32


def test_a_latency_that_is_near_its_limit_is_not_refused_for_a_busy_machine(bench: Bench) -> None:
    near = Budget(max_drop=2.0, max_latency_ms=0.9 * 0.5 * len(PLAIN))

    with pytest.raises(MachineBusy, match="ms at most"):
        bench.run([*PLAIN], near, had_processor=0.19)
    assert not bench.run([*PLAIN], near).ships


# Ctrl-C


def test_an_interrupted_search_goes_on_behind_what_was_measured(bench: Bench) -> None:
    units, budget = [*PLAIN, DESTROYED, SLOWED], Budget(max_drop=2.0)

    def stop(text: str) -> None:
        if "candidate 3" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.search(bench.subject(units), budget=budget, say=stop).run()
    before = len(bench.passes.ran)
    bench.passes.resumed.clear()
    found = bench.search(bench.subject(units), budget=budget).run()

    assert before > 2 * len(units)
    assert len(bench.passes.resumed) >= before
    assert found.ships

    bench.passes.ran.clear()
    again = bench.search(bench.subject(units), budget=budget).run()
    assert bench.passes.ran == []
    assert again.keep_float == found.keep_float


@pytest.mark.slow
def test_progress_says_what_is_tried_and_the_best_so_far(bench: Bench) -> None:
    bench.run([*PLAIN, SLOWED], Budget(max_drop=3.0))

    assert any("what quantizing plain0 alone does, unit 1 of 6" in text for text in bench.said)
    assert any("what slowed saves, unit 6 of 6" in text for text in bench.said)
    assert any("candidate 2 of" in text and "best so far" in text for text in bench.said)
