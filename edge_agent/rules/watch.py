"""Between the worker and the events: follows things, asks the rules, hands on what both say. Runs inline, per frame."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from edge_agent.config import AgentConfig, LineConfig, TrackingConfig, ZoneConfig
from edge_agent.mailbox import Captured
from edge_agent.rules.lines import Line
from edge_agent.rules.scene import Stamp, Thing
from edge_agent.rules.tracker import Box, Tracker
from edge_agent.rules.zones import Zone
from skerry.wire import Answer, Judged


class After(Protocol):
    """Hears what became of frames."""

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        """A frame was answered."""

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        """A frame that was to be answered is not."""


class Watch:
    """Hears the worker in place of ``after``, which hears it then, with the things' numbers.

    Belongs to the worker's thread, but for `apply`. It outlives every model: a swap changes who answers, and nothing
    of what is followed and counted.

    Args:
        judged: hears what the rules say of a frame, once ``after`` has heard of it.
    """

    def __init__(self, config: AgentConfig, after: After, judged: Callable[[Judged], object]) -> None:
        self._config, self._after, self._judged = config, after, judged
        self._applied = config
        self._scenes: dict[str, _Scene] = {}
        self._numbers = itertools.count(1)

    def apply(self, config: AgentConfig) -> None:
        """From the next frame of each source on."""
        self._config = config

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        """Follows what is on a frame, and judges it."""
        config = self._config
        if config is not self._applied:
            self._leave({source.label for source in config.sources})
            self._applied = config
        tracking = config.tracking or (TrackingConfig() if config.zones or config.lines else None)
        if tracking is None and frame.source not in self._scenes:
            self._after.seen(frame, release, answers)
            return
        scene = self._scenes.get(frame.source)
        if scene is None:
            scene = self._scenes[frame.source] = _Scene(self._numbers.__next__)
        stamp = _stamp(frame, release)
        changed = list(scene.apply(config, frame.source, tracking, stamp))
        told, things = scene.follow(frame.mono_s, answers) if tracking is not None else (answers, [])
        self._after.seen(frame, release, told)
        for event in [*changed, *scene.judge(frame.mono_s, things, stamp)]:
            self._judged(event)
        if tracking is None:
            del self._scenes[frame.source]

    def _leave(self, sources: Collection[str]) -> None:
        """Ends what is followed on all sources but these."""
        for source in sorted(self._scenes.keys() - set(sources)):
            for event in self._scenes.pop(source).close():
                self._judged(event)

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        """Nothing was seen: time stands still."""
        self._after.no_verdict(source, frame, why, release)


class _Scene:
    """One source: its things, and the rules that look at them."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._tracker = Tracker(TrackingConfig(), number)
        self._best: dict[int, float] = {}
        self._rules: list[Zone | Line] = []
        self._applied: AgentConfig | None = None
        self._last: Stamp | None = None

    def apply(
        self, config: AgentConfig, source: str, tracking: TrackingConfig | None, stamp: Stamp
    ) -> Iterator[Judged]:
        """Takes rules that are new, and ends those that are no more. One that did not change keeps its count."""
        self._last = stamp
        if config is self._applied:
            return
        self._applied, self._tracker.config = config, tracking or TrackingConfig()
        old, self._rules = self._rules, []
        places: list[ZoneConfig | LineConfig] = [*config.zones, *config.lines]
        for place in places:
            if place.source in (source, "*"):
                same = next((rule for rule in old if rule.config == place), None)
                self._rules.append(same or (Zone(place) if isinstance(place, ZoneConfig) else Line(place)))
        for rule in old:
            if rule not in self._rules:
                yield from rule.close(stamp)

    def close(self) -> Iterator[Judged]:
        """What ends with the source, as of its last frame."""
        if self._last is not None:
            for rule in self._rules:
                yield from rule.close(self._last)

    def follow(self, time_s: float, answers: Sequence[Answer]) -> tuple[list[Answer], list[Thing]]:
        """The answers with their tracks, and the things that they show. One about the whole frame has none."""
        boxes = [Box(answer.label, answer.score, answer.box) for answer in answers if answer.box is not None]
        tracks = iter(self._tracker.update(time_s, boxes))
        told, things = [], []
        for answer in answers:
            track = next(tracks) if answer.box is not None else None
            if answer.box is not None and track is not None:
                best = self._best[track] = max(self._best.get(track, 0.0), answer.score)
                things.append(Thing(track, self._tracker.label(track), best, answer.box))
            told.append(Answer(answer.label, answer.score, answer.box, track))
        return told, things

    def judge(self, time_s: float, things: Sequence[Thing], stamp: Stamp) -> Iterator[Judged]:
        """What the rules say, rule by rule as they are configured. A thing that is new to them was seen once before."""
        alive = self._tracker.numbers
        begun = [
            (first_s, Thing(track, box.label, self._best[track], box.corners))
            for track, first_s, box in self._tracker.begun
        ]
        self._best = {track: best for track, best in self._best.items() if track in alive}
        for rule in self._rules:
            for first_s, thing in begun:
                yield from rule.update(first_s, [thing], alive, stamp)
            yield from rule.update(time_s, things, alive, stamp)


def _stamp(frame: Captured, release: str) -> Stamp:
    return Stamp(
        source=frame.source,
        frame=frame.number,
        release=release,
        utc_ms=frame.utc.ms,
        trust=frame.utc.trust,
        mono_ms=int(frame.mono_s * 1000),
    )
