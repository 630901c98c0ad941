"""A zone: what enters it, stays, leaves. Entered less left is what is inside, whatever flickers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from edge_agent.config import ZoneConfig
from edge_agent.rules.scene import Stamp, Thing, within
from skerry.wire import Dwelt, Entered, Judged, Left, LeftBecause


@dataclass
class _Stay:
    """Of one thing in the zone.

    Attributes:
        since_s, last_s: when it was first and last seen inside.
        out_s: since when it is seen outside; None while it is not.
        entered: whether it has stayed long enough to count.
    """

    label: str
    since_s: float
    last_s: float
    out_s: float | None = None
    entered: bool = False
    dwelt: bool = False

    @property
    def inside_ms(self) -> int:
        return round((self.last_s - self.since_s) * 1000)


class Zone:
    """One zone on one source. Nothing that was inside for less than ``enter_s`` is ever told of."""

    def __init__(self, config: ZoneConfig) -> None:
        self.config = config
        self._stays: dict[int, _Stay] = {}

    @property
    def inside(self) -> int:
        """How many things are in it."""
        return sum(stay.entered for stay in self._stays.values())

    def update(self, time_s: float, things: Sequence[Thing], alive: Collection[int], stamp: Stamp) -> Iterator[Judged]:
        """What a frame changes, in the order of the tracks; what is gone first.

        Args:
            things: those that the frame shows.
            alive: tracks that are there, in sight or not.
        """
        for track in sorted(self._stays.keys() - set(alive)):
            yield from self._end(track, "out of sight", stamp)
        for thing in sorted(things, key=lambda thing: thing.track):
            if within(thing.anchor(self.config.anchor), self.config.polygon):
                yield from self._inside(time_s, thing, stamp)
            else:
                yield from self._outside(time_s, thing, stamp)

    def close(self, stamp: Stamp) -> Iterator[Judged]:
        """Ends every stay: the zone is no more what it was."""
        for track in sorted(self._stays):
            yield from self._end(track, "no longer watched", stamp)

    def _inside(self, time_s: float, thing: Thing, stamp: Stamp) -> Iterator[Judged]:
        stay = self._stays.get(thing.track)
        if not (stay and stay.entered) and not thing.wanted(self.config):
            self._stays.pop(thing.track, None)
            return
        stay = self._stays.setdefault(thing.track, _Stay(thing.label, time_s, time_s))
        stay.label, stay.last_s, stay.out_s = thing.label, time_s, None
        if not stay.entered and time_s - stay.since_s >= self.config.enter_s:
            stay.entered = True
            yield Entered(zone=self.config.name, track=thing.track, label=stay.label, inside=self.inside, **stamp)
        if self._dwells(stay):
            stay.dwelt = True
            yield Dwelt(zone=self.config.name, track=thing.track, label=stay.label, inside_ms=stay.inside_ms, **stamp)

    def _dwells(self, stay: _Stay) -> bool:
        wanted = self.config.dwell_s
        return wanted is not None and stay.entered and not stay.dwelt and stay.last_s - stay.since_s >= wanted

    def _outside(self, time_s: float, thing: Thing, stamp: Stamp) -> Iterator[Judged]:
        stay = self._stays.get(thing.track)
        if stay is None:
            return
        stay.out_s = time_s if stay.out_s is None else stay.out_s
        if not stay.entered or time_s - stay.out_s >= self.config.leave_s:
            yield from self._end(thing.track, "outside", stamp)

    def _end(self, track: int, why: LeftBecause, stamp: Stamp) -> Iterator[Judged]:
        stay = self._stays.pop(track)
        if stay.entered:
            yield Left(
                zone=self.config.name,
                track=track,
                label=stay.label,
                inside_ms=stay.inside_ms,
                inside=self.inside,
                why=why,
                **stamp,
            )
