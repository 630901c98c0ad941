"""Events as lines for a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from edge_agent.sinks.sink import Sink
from skerry.errors import FormatError
from skerry.wire import (
    Crossed,
    Dwelt,
    Entered,
    Event,
    Judged,
    Left,
    NoVerdict,
    Seen,
    SourceChanged,
    Stored,
    decode_event,
)


class TerminalSink(Sink):
    """Writes a line for each event."""

    name = "terminal"

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def deliver(self, events: Sequence[Stored]) -> None:
        for stored in events:
            self._write(_line(bytes(stored.event)))


def _line(raw: bytes) -> str:
    try:
        return describe(decode_event(raw))
    except FormatError:  # a later version wrote it
        return raw.decode("utf-8", "replace")


def describe(event: Event) -> str:
    """One line about an event."""
    when = datetime.fromtimestamp(event.utc_ms / 1000, timezone.utc).astimezone().strftime("%H:%M:%S")
    if isinstance(event, Seen):
        answers = ", ".join(f"{a.label} {a.score:.2f}" for a in event.answers[:5]) or "nothing"
        return f"{when}  {event.source} #{event.frame}: {answers}  [{event.release[:8]}]"
    if isinstance(event, SourceChanged):
        return f"{when}  source {event.source} {event.state}" + (f": {event.why}" if event.why else "")
    if isinstance(event, NoVerdict):
        number = "" if event.frame is None else f" #{event.frame}"
        return f"{when}  {event.source}{number}: no verdict: {event.why}"
    if isinstance(event, (Entered, Dwelt, Left, Crossed)):
        return f"{when}  {event.source} #{event.frame}: {event.label} {event.track} {_did(event)}"
    about = f" {event.release[:12]}" if event.release else ""
    why = f": {event.why}" if event.why else ""
    return f"{when}  update{about} {event.before} → {event.state} ({event.event}){why}"


def _did(event: Judged) -> str:
    if isinstance(event, Entered):
        return f"entered {event.zone}; {event.inside} inside"
    if isinstance(event, Dwelt):
        return f"has been in {event.zone} for {event.inside_ms / 1000:.1f} s"
    if isinstance(event, Left):
        return f"left {event.zone} after {event.inside_ms / 1000:.1f} s ({event.why}); {event.inside} inside"
    return f"crossed {event.line} {event.direction}; {event.forward} forward, {event.backward} backward"
