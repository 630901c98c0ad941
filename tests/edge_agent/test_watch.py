"""From answers to events, as the worker's thread goes through it: swaps, cameras that come back, rules that change."""

from __future__ import annotations

import os
import signal
from fractions import Fraction
from pathlib import Path

import av
import boxed
import numpy as np
import pytest
from live_agent import LiveAgent

from edge_agent.config import AgentConfig, LineConfig, SourceConfig, TrackingConfig, ZoneConfig, check
from edge_agent.mailbox import Captured
from edge_agent.reload import changes
from edge_agent.rules.watch import Watch
from edge_agent.sinks.terminal import describe
from skerry.clock import Trust, Utc
from skerry.errors import ConfigError
from skerry.wire import Answer, Crossed, Dwelt, Entered, Left, decode_event, encode

ALL = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
RIGHT = [(0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)]
DOOR = LineConfig(name="door", begin=(0.5, 0.0), end=(0.5, 1.0))
PICTURE = np.zeros((2, 2, 3), np.uint8)


class Told:
    """What comes after: keeps what it hears, in order."""

    def __init__(self) -> None:
        self.all: list = []

    def seen(self, frame, release, answers) -> None:
        self.all.append((frame, release, answers))

    def no_verdict(self, source, frame, why, release=None) -> None:
        self.all.append([source, frame, why, release])

    def judged(self, event) -> None:
        assert decode_event(encode(event)) == event
        assert event.source in describe(event)
        self.all.append(event)

    @property
    def events(self) -> list:
        return [one for one in self.all if isinstance(one, (Entered, Dwelt, Left, Crossed))]

    def tracks(self) -> list:
        return [[a.track for a in one[2]] for one in self.all if isinstance(one, tuple)]


def config(**fields) -> AgentConfig:
    sources = [SourceConfig(url="rtsp://cam/live", name=name) for name in ("gate", "dock")]
    return AgentConfig(**{"data": "/nowhere", "sources": sources, **fields})


def zone(**fields) -> ZoneConfig:
    return ZoneConfig(**{"name": "yard", "polygon": ALL, "enter_s": 0.2, "leave_s": 0.2, **fields})


def show(watch: Watch, time_s: float, *xs: float, source="gate", release="one", label="car", number=0) -> None:
    """A frame with a thing at each x."""
    answers = [Answer(label, 0.9, (x - 0.05, 0.4, x + 0.05, 0.6)) for x in xs]
    watch.seen(Captured(source, number, time_s, Utc(0, Trust.NONE), PICTURE), release, answers)


def test_without_tracking_answers_pass_untouched():
    told = Told()
    watch = Watch(config(), told, told.judged)
    show(watch, 0.0, 0.3)
    show(watch, 0.1, 0.3)
    assert told.tracks() == [[None], [None]]


def test_answers_about_the_whole_frame_have_no_track():
    told = Told()
    watch = Watch(config(tracking=TrackingConfig()), told, told.judged)
    for now in (0.0, 0.1):
        watch.seen(Captured("gate", 0, now, Utc(0, Trust.NONE), PICTURE), "one", [Answer("cat", 0.9)])
    assert told.tracks() == [[None], [None]]


def test_what_is_seen_is_told_before_what_it_means():
    told = Told()
    watch = Watch(config(zones=[zone(enter_s=0.0)], lines=[DOOR]), told, told.judged)
    for n in range(25):
        show(watch, n / 10, 0.2 + 0.03 * n, number=n)
    assert [type(e).__name__ for e in told.events] == ["Entered", "Crossed"]
    for event in told.events:
        before = told.all[told.all.index(event) - 1]
        assert (before[0].number, before[1]) == (event.frame, event.release)
        assert event.track in [a.track for a in before[2]]
        assert event.mono_ms == event.frame * 100


def test_what_happened_before_a_thing_was_sure_counts_once_it_is():
    told = Told()
    watch = Watch(config(zones=[zone(enter_s=0.5)], lines=[DOOR]), told, told.judged)
    for now, x in ((0.0, 0.44), (0.25, 0.56), (0.5, 0.68)):
        show(watch, now, x)
    assert told.tracks() == [[None], [1], [1]]
    assert [(type(e).__name__, e.mono_ms) for e in told.events] == [("Entered", 500), ("Crossed", 500)]


def test_a_swap_in_the_middle_of_a_visit_changes_only_who_answers():
    told = Told()
    watch = Watch(config(zones=[zone(dwell_s=1.0)], lines=[DOOR]), told, told.judged)
    for n in range(20):
        show(watch, n / 10, 0.1 + 0.04 * n, release="one" if n < 9 else "two", label="car" if n < 9 else "vehicle")
    assert [(type(e).__name__, e.release) for e in told.events] == [
        ("Entered", "one"),
        ("Dwelt", "two"),
        ("Crossed", "two"),
    ]
    assert {e.track for e in told.events} == {1}
    assert told.events[-1].forward == 1


def test_a_model_that_does_not_know_the_things_lets_them_leave_once():
    told = Told()
    watch = Watch(config(zones=[zone()]), told, told.judged)
    for n in range(30):
        show(watch, n / 10, *([0.3] if n < 10 else []), release="one" if n < 10 else "two")
    assert [(type(e).__name__, e.release) for e in told.events] == [("Entered", "one"), ("Left", "two")]
    assert told.events[-1].why == "out of sight"


def test_a_camera_that_is_lost_and_back_counts_nothing_twice():
    told = Told()
    watch = Watch(config(zones=[zone()], lines=[DOOR]), told, told.judged)
    for start in (0.0, 10.0, 20.0):
        watch.no_verdict("gate", None, "a frame that could not be read")
        for n in range(10):
            show(watch, start + n / 10, 0.3, 0.8)
    assert [type(e).__name__ for e in told.events] == ["Entered", "Entered"]
    show(watch, 60.0, 0.3, 0.8)
    assert [(type(e).__name__, e.why) for e in told.events[2:]] == [("Left", "out of sight")] * 2


def test_each_source_has_things_and_counts_of_its_own():
    told = Told()
    watch = Watch(config(zones=[zone(), zone(name="dock", source="dock")], lines=[DOOR]), told, told.judged)
    for n in range(12):
        for source in ("gate", "dock"):
            show(watch, n / 10, 0.2 + n * 0.06, source=source)
    assert [(e.source, e.zone, e.inside) for e in told.events if isinstance(e, Entered)] == [
        ("gate", "yard", 1),
        ("dock", "yard", 1),
        ("dock", "dock", 1),
    ]
    assert [(e.source, e.forward) for e in told.events if isinstance(e, Crossed)] == [("gate", 1), ("dock", 1)]
    assert len({e.track for e in told.events}) == 2, "no two sources give one number"


def test_rules_that_change_apply_from_the_next_frame_and_the_others_keep_their_counts():
    told = Told()
    before = config(zones=[zone(), zone(name="right", polygon=RIGHT)], lines=[DOOR])
    after = config(zones=[zone(), zone(name="right", polygon=RIGHT, dwell_s=0.1)], lines=[DOOR])
    watch = Watch(before, told, told.judged)
    for n in range(20):
        show(watch, n / 10, 0.2 + 0.03 * n)
    told.all.clear()
    watch.apply(changes(before, after).config)
    for n in range(20, 25):
        show(watch, n / 10, 0.8)
    assert [(type(e).__name__, e.zone) for e in told.events] == [
        ("Left", "right"),
        ("Entered", "right"),
        ("Dwelt", "right"),
    ]
    assert told.events[0].why == "no longer watched"
    for n in range(20):
        show(watch, 2.5 + n / 10, 0.8 - 0.03 * n)
    assert [(e.forward, e.backward) for e in told.events if isinstance(e, Crossed)] == [(1, 1)]


def test_a_source_that_ends_lets_everything_go():
    told = Told()
    watch = Watch(config(zones=[zone()]), told, told.judged)
    for n in range(5):
        show(watch, n / 10, 0.3, source="dock", number=n)
    watch.apply(config(zones=[zone()], sources=[SourceConfig(url="rtsp://cam/live", name="gate")]))
    show(watch, 9.0, 0.3, source="gate")
    left = told.events[-1]
    assert (left.source, left.zone, left.why, left.inside, left.frame) == ("dock", "yard", "no longer watched", 0, 4)


def test_tracking_that_is_switched_off_lets_everything_go():
    told = Told()
    watch = Watch(config(zones=[zone()]), told, told.judged)
    for n in range(5):
        show(watch, n / 10, 0.3)
    watch.apply(config())
    show(watch, 0.6, 0.3)
    show(watch, 0.7, 0.3)
    assert [type(e).__name__ for e in told.events] == ["Entered", "Left"]
    assert told.tracks()[-1] == [None]


def test_a_reload_takes_tracking_zones_and_lines_without_a_restart():
    found = changes(config(), config(tracking=TrackingConfig(lost_s=2.0), zones=[zone()], lines=[DOOR]))
    assert found.restart == []
    assert (found.config.zones, found.config.lines) == ([zone()], [DOOR])
    assert found.config.tracking.lost_s == 2.0


GATE = {"data": "d", "sources": [{"url": "rtsp://cam/live", "name": "gate"}]}
AREA = {"name": "yard", "source": "gate", "polygon": ALL}
STROKE = {"name": "door", "source": "gate", "from": [0.5, 0.0], "to": [0.5, 1.0]}


def test_zones_and_lines_are_read_as_they_are_written():
    found = check({**GATE, "zones": [AREA], "lines": [STROKE]}, "agent.toml")
    assert found.zones[0].polygon[1] == (1.0, 0.0)
    assert (found.lines[0].begin, found.lines[0].end) == ((0.5, 0.0), (0.5, 1.0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"zones": [AREA, AREA]}, "two zones have one name: yard, yard"),
        ({"zones": [{**AREA, "source": "dock"}]}, 'yard is of "dock"; the sources are: gate'),
        ({"zones": [{**AREA, "polygon": [[0.1, 0.1], [0.2, 0.2]]}]}, "yard has 2 corners"),
        ({"zones": [{**AREA, "polygon": [[0.1, 0.1], [20, 0.2], [0.3, 0.3]]}]}, "zones[0].polygon"),
        ({"zones": [{**AREA, "colour": "red"}]}, "colour"),
        ({"lines": [{**STROKE, "to": [0.5, 0.0]}]}, "door begins where it ends"),
        ({"lines": [{**STROKE, "settle_s": -1.0}]}, "settle_s"),
        ({"tracking": {"lost_s": 0}}, "tracking.lost_s"),
    ],
)
def test_a_rule_that_could_never_hold_is_refused_with_its_place(values, said):
    with pytest.raises(ConfigError, match=said.replace("[", r"\[").replace("?", r"\?")):
        check({**GATE, **values}, "agent.toml")


def film(path: Path) -> Path:
    """A red thing in the upper left quarter, for two seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = 40, 60, "yuv420p"
        for number in range(50):
            picture = av.VideoFrame.from_ndarray(boxed.drawn(0, 0, number), format="rgb24")
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.slow
def test_in_a_real_agent_a_stay_outlives_a_swap_and_a_new_zone_applies_live(tmp_path):
    first, second = (boxed.Boxed(version=version).pack(tmp_path) for version in (1, 2))
    area = "polygon = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]"
    more = f'max_more_superseded = 1.0\n[[zones]]\nname = "room"\nsource = "camera"\n{area}\n'
    with LiveAgent(tmp_path, film(tmp_path / "film.mp4"), more=more).start("--model", str(first[0])) as agent:
        agent.wait_kept(first[1])
        assert agent.install(second[0], "--wait", "20").returncode == 0
        agent.wait_kept(second[1])
        written = tmp_path / "agent.toml"
        written.write_text(f'{written.read_text()}[[zones]]\nname = "corner"\n{area}\n')
        os.kill(agent.status()["pid"], signal.SIGHUP)
        agent.wait(lambda _: any(said(line).get("zone") == "corner" for line in agent.lines()))
    told = [said(line) for line in agent.lines() if said(line)["kind"] in ("entered", "left")]
    assert [(e["kind"], e["zone"], e["release"], e["inside"]) for e in told] == [
        ("entered", "room", first[1], 1),
        ("entered", "corner", second[1], 1),
    ]
    assert told[0]["track"] == told[1]["track"]


def said(line: dict) -> dict:
    return line["event"]
