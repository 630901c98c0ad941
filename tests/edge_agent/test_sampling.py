"""Sampling: what is worth training with, and budgets that hold over any hour and any day."""

from __future__ import annotations

import io
import json
import math
import random
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent.config import Mask, PrivacyConfig, SamplingConfig
from edge_agent.darkroom import Darkroom
from edge_agent.gate import Gate
from edge_agent.mailbox import Captured
from edge_agent.pictures import Pictures
from edge_agent.samples import Sampler, Tools
from edge_agent.sampling import (
    DAY_MS,
    DRIFTING,
    HOUR_MS,
    RANDOM,
    UNCERTAIN,
    Choice,
    Taken,
    is_uncertain,
    left_bytes,
    psi,
    recent,
)
from skerry.clock import Trust, Utc
from skerry.disk import Disk
from skerry.wire import Answer, Sample

BOX = (0.1, 0.1, 0.5, 0.5)


@pytest.mark.parametrize(
    ("answers", "uncertain"),
    [
        ([Answer("cat", 0.95), Answer("dog", 0.03)], False),
        ([Answer("cat", 0.55), Answer("dog", 0.40)], True),  # in the band
        ([Answer("cat", 0.81), Answer("dog", 0.75)], True),  # hardly before the second
        ([Answer("cat", 0.95), Answer("dog", 0.50)], False),  # the second's score means nothing
        ([Answer("car", 0.9, BOX), Answer("bus", 0.45, BOX)], True),
        ([Answer("car", 0.9, BOX), Answer("bus", 0.88, BOX)], False),  # two things, not two opinions
        ([], False),
    ],
)
def test_what_a_model_is_unsure_of(answers, uncertain):
    assert is_uncertain(answers, (0.4, 0.6), 0.1) is uncertain


def test_the_index_is_nothing_for_alike_and_large_for_unlike_histograms():
    before = Counter({"car": 800, "bus": 200})
    assert psi(Counter({"car": 160, "bus": 40}), before) < 0.01
    assert psi(Counter({"car": 40, "bus": 160}), before) == pytest.approx(2 * 0.6 * math.log(4), rel=0.05)
    assert psi(Counter({"deer": 200}), before) > 5, "what was never seen"
    many = Counter({str(n): 100 for n in range(1000)})
    assert psi(many, many) == pytest.approx(0.0)


def test_a_source_drifts_when_it_shows_something_else_and_no_more_once_that_is_usual():
    choice, chance = Choice(SamplingConfig(drift=0.25, apart_s=0.0)), random.Random(0)

    def day(labels: str, frames: int) -> list[str | None]:
        return [
            choice.why("gate", "r", [Answer(chance.choice(labels), 0.9, BOX)], float(n), 0.9) for n in range(frames)
        ]

    assert not any(day("aaab", 4000)), "the same as ever"
    changed = day("abbb", 1000)
    assert DRIFTING in changed[:200]
    assert not any(day("abbb", 40_000)[-2000:]), "it is usual now"
    assert choice.why("gate", "another release", [Answer("z", 0.9)], 1e6, 0.9) is None, "it has no history yet"


def test_hard_frames_of_one_source_are_apart_and_random_ones_are_a_share():
    choice = Choice(SamplingConfig(band=(0.4, 0.6), apart_s=10.0, random=0.01))
    unsure = [Answer("cat", 0.5)]
    assert choice.why("a", "r", unsure, 100.0, 0.5) == UNCERTAIN
    choice.looked("a", 100.0)
    assert choice.why("a", "r", unsure, 109.9, 0.5) is None
    assert choice.why("b", "r", unsure, 109.9, 0.5) == UNCERTAIN
    assert choice.why("a", "r", unsure, 110.0, 0.5) == UNCERTAIN
    draw = random.Random(1).random
    taken = sum(choice.why("c", "r", [], 0.0, draw()) == RANDOM for _ in range(50_000))
    assert taken == pytest.approx(500, rel=0.15)


def test_without_a_word_nothing_is_sampled():
    assert not SamplingConfig().wanted
    choice = Choice(SamplingConfig())
    assert choice.why("a", "r", [Answer("cat", 0.5), Answer("dog", 0.49)], 0.0, 0.0) is None


def simulate(config: SamplingConfig, gaps_ms: list[int], sizes: list[int]) -> list[Taken]:
    """Frames that are all wanted, at these times: what is taken in all."""
    now, taken, everything = 0, [], []
    for gap, size in zip(gaps_ms, sizes, strict=True):
        now += gap
        taken = recent(taken, now)
        if size <= left_bytes(taken, now, config):
            taken.append(Taken(now, size))
            everything.append(taken[-1])
    return everything


@settings(max_examples=40, deadline=None)
@given(
    per_hour=st.integers(1, 40),
    per_day=st.integers(1, 200),
    mib_hour=st.integers(1, 4),
    mib_day=st.integers(1, 20),
    seed=st.integers(0, 1000),
    mean_gap_ms=st.sampled_from([1000, 60_000, 400_000]),
)
def test_no_hour_and_no_day_is_ever_over_its_budget(per_hour, per_day, mib_hour, mib_day, seed, mean_gap_ms):
    config = SamplingConfig(random=1.0, per_hour=per_hour, per_day=per_day, mib_per_hour=mib_hour, mib_per_day=mib_day)
    chance = random.Random(seed)
    count = min(4000, 3 * DAY_MS // mean_gap_ms)
    gaps = [int(chance.expovariate(1 / mean_gap_ms)) for _ in range(count)]
    taken = simulate(config, gaps, [chance.randrange(10_000, 400_000) for _ in gaps])
    for first, one in enumerate(taken):
        for span, frames, mib in ((HOUR_MS, per_hour, mib_hour), (DAY_MS, per_day, mib_day)):
            inside = [other.bytes for other in taken[first:] if other.ms < one.ms + span]
            assert len(inside) <= frames
            assert sum(inside) <= mib << 20


@pytest.mark.parametrize(("per_hour", "per_day", "expected"), [(10, 1000, 3 * 24 * 10), (60, 200, 3 * 200)])
def test_a_budget_is_used_up_where_there_is_enough_to_take(per_hour, per_day, expected):
    config = SamplingConfig(random=1.0, per_hour=per_hour, per_day=per_day)
    taken = simulate(config, [40_000] * (3 * DAY_MS // 40_000), [1000] * (3 * DAY_MS // 40_000))
    assert len(taken) == pytest.approx(expected, rel=0.01)


def test_a_clock_that_goes_back_holds_the_budget_for_a_day_at_most():
    config = SamplingConfig(random=1.0, per_hour=1, per_day=2)
    year = 365 * DAY_MS
    taken = recent([Taken(year, 10), Taken(year + 1, 10)], 1000)
    assert left_bytes(taken, 1000, config) == 0
    assert left_bytes(recent(taken, 1001 + DAY_MS), 1001 + DAY_MS, config) > 0


# --- with the gate and the disk ------------------------------------------------------------------------------------


class HandClock:
    ms = 1_000_000

    def utc(self) -> Utc:
        return Utc(self.ms, Trust.RTC)

    def monotonic(self) -> float:
        return self.ms / 1000


def frame(number: int) -> Captured:
    pixels = np.random.default_rng(number).integers(1, 256, (48, 64, 3), np.uint8)
    return Captured("gate", number, number / 10, Utc(1000 * number, Trust.RTC), pixels)


def sampler(folder, privacy: PrivacyConfig, clock: HandClock, **config) -> tuple[Sampler, Pictures, Darkroom]:
    darkroom, pictures = Darkroom(), Pictures(folder / "samples", Disk(), 1 << 20)
    tools = Tools(darkroom, pictures, folder / "samples" / "ledger", Disk(), clock, lambda: 0.0)
    return Sampler(SamplingConfig(random=0.5, **config), Gate(privacy), tools), pictures, darkroom


MASKED = PrivacyConfig(allow=["sample"], masks=[Mask(polygon=[(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)])])


def test_a_sample_lies_beside_its_answers_behind_the_gate(tmp_path):
    made, pictures, darkroom = sampler(tmp_path, MASKED, HandClock())
    with darkroom:
        made.seen(frame(3), "release", [Answer("cat", 0.2)])
    kept = pictures.oldest()
    sample = msgspec.json.decode(pictures.beside(kept.sha256), type=Sample)
    assert (sample.why, sample.frame, sample.release, sample.answers) == (RANDOM, 3, "release", [Answer("cat", 0.2)])
    shown = np.asarray(Image.open(io.BytesIO(pictures.read(kept.sha256))))
    assert shown[:, :24].max() < 40, "black, as far as JPEG can"
    assert shown[:, 40:].mean() > 80


def test_nothing_is_sampled_that_privacy_does_not_allow_and_it_is_said(tmp_path, caplog):
    made, pictures, darkroom = sampler(tmp_path, PrivacyConfig(allow=["event-picture"]), HandClock())
    with darkroom:
        made.seen(frame(0), "release", [])
    assert pictures.count == 0
    assert "privacy.allow" in caplog.text


def test_budgets_hold_across_restarts(tmp_path):
    clock = HandClock()
    for _ in range(3):
        made, pictures, darkroom = sampler(tmp_path, PrivacyConfig(allow=["sample"]), clock, per_hour=4)
        with darkroom:
            for _ in range(3):
                made.seen(frame(clock.ms), "release", [])
                clock.ms += 1000
    assert pictures.count == 4
    assert len(json.loads((tmp_path / "samples" / "ledger").read_bytes())) == 4
