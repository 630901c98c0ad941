"""Asks an agent how it fares, whether it runs or not, and follows an update to its end."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.app import Paths, Running
from edge_agent.slots import Records
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import FormatError, UsageError
from skerry.update import Record, State

_TIMEOUT_S = 5.0
_LOOK_S = 0.2


def ask(data: Path) -> dict[str, Any]:
    """The agent's status (edge_agent.status.Status as JSON values); of a stopped one, what its disk says.

    Raises:
        UsageError: no agent ever ran there.
    """
    paths = Paths(data.absolute())
    try:
        running = parse(paths.running.read_bytes(), Running, str(paths.running))
        return _get(running.port)
    except (OSError, FormatError, http.client.HTTPException):
        pass
    if not paths.record.is_dir():
        raise UsageError(f"no agent has run on {data}; start one with `skerry agent run`, or name its --data")
    record = Records(paths.record, Disk()).record
    return {"running": False, "record": msgspec.to_builtins(record)}


def _get(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/status")
        status: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return {"running": True, **status}


def describe(status: dict[str, Any]) -> str:
    """The status for a person."""
    record = msgspec.convert(status["record"], Record)
    names = status.get("names", {})

    def named(release: str | None) -> str:
        if release is None:
            return "none"
        return f"{names[release]} ({release[:12]})" if release in names else release[:12]

    lines = [
        f"agent     {'runs, process ' + str(status['pid']) if status['running'] else 'does not run'}",
        f"update    {record.state.value}" + (f", target {named(record.target)}" if record.target else ""),
        f"in service {named(record.active.release) + ' ' + record.active.variant if record.active else 'nothing'}",
        f"returns to {named(record.good.release) if record.good else 'nothing'}",
    ]
    lines += [f"rejected  {named(release)}: {why}" for release, why in record.rejected.items()]
    for label, s in status.get("sources", {}).items():
        failing = f"; FAILING: {s['failing']}" if s["failing"] else ""
        lines.append(
            f"source    {label}: captured {s['captured']} = processed {s['processed']} + superseded {s['superseded']}"
            f" + failed {s['failed']} + waiting {s['waiting']}{failing}"
        )
    if latency := status.get("latency"):
        lines.append(f"latency   p50 {latency['p50_ms']:.1f} ms, p99 {latency['p99_ms']:.1f} ms (capture to answer)")
    if (outbox := status.get("outbox")) and not status.get("link"):
        waiting = outbox["accepted"] - outbox["delivered"]
        lines.append(f"events    {outbox['accepted']} accepted, {outbox['delivered']} delivered, {waiting} waiting")
    lines += _receivers(status)
    if link := status.get("link"):
        state = "connected" if link["connected"] else f"OUT OF REACH: {link['why']}"
        lines.append(f"hub       {link['hub']} as {link['device']}: {state}; {link['waiting']} events wait")
    return "\n".join(lines)


def _receivers(status: dict[str, Any]) -> Iterator[str]:
    """How each sink fares, and what of pictures there is."""
    for name, sink in (status.get("outbox") or {}).get("sinks", {}).items():
        failing = f"; FAILING: {sink['failing']}" if sink["failing"] else ""
        gone = "".join(f", {sink[what]} {what}" for what in ("lost", "skipped") if sink[what])
        yield f"sink      {name}: {sink['delivered']} delivered, {sink['waiting']} waiting{gone}{failing}"
    for kind, pictures in status.get("pictures", {}).items():
        counts = ("missed", "withheld", "dropped", "unsent", "sent", "waiting", "refused")
        told = "".join(f", {pictures[what]} {what}" for what in counts if pictures[what])
        failing = f"; FAILING: {pictures['failing']}" if pictures["failing"] else ""
        if pictures["kept"] or told or failing:
            yield f"{kind:<9} {pictures['kept']} kept ({pictures['bytes'] / 2**20:.1f} MiB){told}{failing}"


def follow(data: Path, release: str, timeout_s: float, say: Callable[[str], object]) -> int:
    """Says each state that the update passes; returns 0 if the release is kept, 1 if it is not."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_s
    last = "no agent runs here yet"
    while clock.monotonic() < deadline:
        record = _record(data)
        if record.state.value != last:
            say(f"  {record.state.value}")
            last = record.state.value
        if release in record.rejected:
            say(f"refused: {record.rejected[release]}")
            return 1
        if record.state is State.IDLE and record.active is not None and record.active.release == release:
            say("kept: it is in service")
            return 0
        clock.sleep(_LOOK_S)
    say(f"not decided within {timeout_s:g} s: {last}")
    return 1


def _record(data: Path) -> Record:
    """The agent's record; an empty one while the agent is still to start."""
    try:
        return msgspec.convert(ask(data)["record"], Record)
    except UsageError:
        return Record()
