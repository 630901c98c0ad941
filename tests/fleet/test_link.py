"""The link on bad networks: no accepted event is lost, none comes twice, and what waits does not hold up what is new.

Hub and device are hosts of their own; the kernel's TCP between them meets real loss, delay and silence.
"""

from __future__ import annotations

import statistics
import time

import pytest
from linked import Linked
from live_hub import BROKERS, LiveHub, each_once, whole
from netns import HUB, OPERATOR, Wire, inside

pytestmark = pytest.mark.slow

LINK = {"keepalive_s": 4, "ack_s": 6, "longest_pause_s": 2, "report_s": 2}


@pytest.fixture(scope="module", params=BROKERS)
def hosts(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with (
        Wire() as wire,
        LiveHub(folder, request.param, prefix=inside(wire.hub), names=[HUB], operator=OPERATOR) as hub,
    ):
        yield wire, hub


@pytest.fixture
def device(hosts, tmp_path):
    """Makes a device at the other end of the wire, which is good again."""
    wire, hub = hosts
    wire.good()
    made = []

    def make(**options):
        linked = Linked(
            tmp_path / f"device{len(made)}", hub.claim(), prefix=inside(wire.device), **{"link": LINK, **options}
        )
        made.append(linked)
        linked.start()
        return linked

    yield make
    for linked in made:
        linked.__exit__()


def of(hub, device):
    """The device's events, as the hub has them."""
    name = device.status()["device"]
    return [event for event in hub.events() if event.device == name]


def settle(hub, device, timeout_s=120.0):
    """Ends the events, waits until none waits, and says what the hub has: the frames' numbers, each once."""
    device.end_events()
    status = device.wait("nothing waits", lambda s: not s["emitting"] and not s["waiting"], timeout_s)
    events = of(hub, device)
    for numbers in each_once(events).values():
        assert whole(numbers), "a hole"
    assert sorted(e.event["frame"] for e in events) == list(range(1, status["emitted"] + 1))
    return events


def test_packets_that_are_dropped_without_a_word_lose_nothing(hosts, device):
    wire, hub = hosts
    d = device()
    d.wait("connected", lambda s: s["connected"])
    wire.cut = True
    d.wait("it notices by itself", lambda s: not s["connected"])
    waiting = d.wait("events wait", lambda s: s["waiting"] > 100)["waiting"]
    wire.cut = False
    d.wait("connected again", lambda s: s["connected"])
    assert len(settle(hub, d)) > waiting


@pytest.mark.parametrize(
    ("loss", "delay_s", "rate"),
    [(0.3, 0.0, 0), (0.0, 0.4, 0), (0.0, 0.05, 8000)],
    ids=["30 % loss", "800 ms", "64 kbit/s"],
)
def test_a_bad_wire_loses_nothing(hosts, device, loss, delay_s, rate):
    wire, hub = hosts
    d = device(link={**LINK, "keepalive_s": 10, "ack_s": 12})
    d.wait("connected", lambda s: s["connected"])
    wire.loss, wire.delay_s, wire.rate = loss, delay_s, rate
    emitted = d.status()["emitted"]
    d.wait("events on the bad wire", lambda s: s["emitted"] > emitted + 80)
    d.kill()  # and a start on it
    d.start()
    d.wait("connected on the bad wire", lambda s: s["connected"], 180)
    d.end_events()
    settle(hub, d, 240)


def test_a_broker_that_flaps_loses_nothing(hosts, device):
    _, hub = hosts
    d = device()
    d.wait("connected", lambda s: s["connected"])
    for _ in range(5):
        hub.kill_broker()
        time.sleep(2)
    d.wait("connected again", lambda s: s["connected"])
    settle(hub, d)


def test_an_agent_that_is_killed_loses_nothing_that_it_accepted(hosts, device):
    _, hub = hosts
    d = device(rate=50)
    for _ in range(4):
        d.wait("events come", lambda s: s["connected"] and s["emitted"] > 20)
        time.sleep(0.7)
        d.kill()
        d.start()
    d.end_events()
    d.wait("nothing waits", lambda s: not s["emitting"] and not s["waiting"])
    for numbers in each_once(of(hub, d)).values():
        assert whole(numbers)  # what it had not accepted when it was killed has no number


def test_a_full_outbox_says_what_it_lost(hosts, device):
    wire, hub = hosts
    d = device(max_mib=4)
    d.wait("connected", lambda s: s["connected"])
    d.kill()
    wire.cut = True
    d.start(waiting=30_000)  # far more than fit
    status = d.wait("it runs", lambda s: s["emitted"] > 30_000)
    wire.cut = False
    d.end_events()
    status = d.wait("nothing waits", lambda s: not s["emitting"] and not s["waiting"], 120)
    numbers = each_once(of(hub, d))
    with hub.client() as client:
        streams = {s.id: s for s in client.streams(status["device"])}
    lost = sum(s.lost for s in streams.values())
    assert lost > 0
    for stream, found in numbers.items():
        assert streams[stream].last_seq == len(found) + streams[stream].lost
    assert sum(map(len, numbers.values())) + lost == status["emitted"]


def test_a_hundred_thousand_waiting_events_hold_up_neither_the_start_nor_what_is_new(hosts, device):
    wire, hub = hosts
    free = device(rate=5)
    free.wait("connected", lambda s: s["connected"])
    laden = device(rate=5, max_mib=128)  # room for all of them
    laden.wait("connected", lambda s: s["connected"])
    for d in (free, laden):
        d.kill()
    wire.rate, wire.delay_s = 8000, 0.05  # 64 kbit/s: the backlog would take most of an hour
    free.start()
    without = free.wait("connected", lambda s: s["connected"] and s["emitted"] > 40, 120)
    free.end_events()
    free.wait("nothing waits", lambda s: not s["waiting"])
    free.kill()
    laden.start(waiting=100_000)
    first = laden.wait("connected", lambda s: s["connected"], 120)
    laden.wait("live events", lambda s: s["emitted"] >= first["emitted"] + 60, 120)
    assert first["waiting"] >= 100_000
    assert first["connected_s"] < 3 * without["connected_s"] + 1.0
    live = [e for e in of(hub, laden) if e.event["frame"] > 100_000 + 5]
    assert len(live) > 30  # they come although the backlog is far from done
    assert laden.status()["waiting"] > 90_000
    late = {
        name: statistics.median(e.received_ms - e.event["utc_ms"] for e in found)
        for name, found in (("free", of(hub, free)[-30:]), ("laden", live))
    }
    assert late["laden"] < 12 * late["free"] + 1000, late  # a batch of the backlog may be ahead, never the backlog
    wire.good()
    settle(hub, laden, 240)
