"""What parts say to each other, defined once: wishes, reports and events.

JSON through msgspec, finite numbers only, null means not measured, times are integer milliseconds.
"""

from __future__ import annotations

from typing import Literal, Union

import msgspec

from skerry.clock import Trust
from skerry.documents import parse

MAIN_APP = "main"  # a device runs one app for now; every format that names apps carries several


# --- what a device is asked to run ---------------------------------------------------------------------------------


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The release that an app should run.

    Attributes:
        previous: what it would be taken back to: stays on the device's disk meanwhile.
    """

    release: str
    previous: str | None = None


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What a device should run. Only the newest version counts.

    Attributes:
        device: whom it is for; empty in a wish that was made on the device itself.
        cleared: releases whose rejection an operator takes back, once per version.
    """

    version: int
    apps: dict[str, Wish]
    cleared: list[str] = []
    device: str = ""


# --- what a device saw ---------------------------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True):
    """One thing that a model says about a frame.

    Attributes:
        score: 0 to 1.
        box: (x0, y0, x1, y1) as fractions of the frame's width and height; null for a statement about the whole frame.
        track: number of the thing that the box shows, given once in a run of the agent; null if it is not followed.
    """

    label: str
    score: float
    box: tuple[float, float, float, float] | None = None
    track: int | None = None


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A JPEG that belongs to an event; it lies on the device, and travels on its own.

    Attributes:
        sha256: of the file; it is asked for by this name.
        bytes: how large the file is.
    """

    sha256: str
    bytes: int
    width: int
    height: int


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="seen"):
    """A model's answers about one frame.

    Attributes:
        frame: number of the frame since its source was opened, from 0.
        release: id of the release that answered; every answer of one event is from this one.
        picture: what it shows, as far as it may leave the device; null if no picture was wanted, or none may.
        utc_ms, trust, mono_ms: when the frame was captured.
    """

    source: str
    frame: int
    release: str
    answers: list[Answer]
    utc_ms: int
    trust: Trust
    mono_ms: int
    picture: Picture | None = None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that is kept to train with: what stands beside its JPEG.

    Attributes:
        why: "uncertain", "drifting" or "random" (edge_agent.sampling).
        picture: the JPEG: what of the frame may leave the device.
        answers: all that the release found, however unsure.
        utc_ms, trust, mono_ms: when the frame was captured.
    """

    why: str
    picture: Picture
    source: str
    frame: int
    release: str
    answers: list[Answer]
    utc_ms: int
    trust: Trust
    mono_ms: int


class _OfAThing(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a thing that is followed.

    Attributes:
        track, label: which thing, and what it is by the votes of its last sights.
        frame, release, utc_ms, trust, mono_ms: of the frame that made it certain, as in `Seen`.
    """

    source: str
    track: int
    label: str
    frame: int
    release: str
    utc_ms: int
    trust: Trust
    mono_ms: int
    picture: Picture | None = None


class Entered(_OfAThing, frozen=True, kw_only=True, tag_field="kind", tag="entered"):
    """A thing has come into a zone.

    Attributes:
        inside: how many are in the zone now.
    """

    zone: str
    inside: int


class Dwelt(_OfAThing, frozen=True, kw_only=True, tag_field="kind", tag="dwelt"):
    """A thing has stayed in a zone for as long as the zone asks; once a stay.

    Attributes:
        inside_ms: how long it has been inside.
    """

    zone: str
    inside_ms: int


LeftBecause = Literal["outside", "out of sight", "no longer watched"]  # the last: its zone or source changed or ended


class Left(_OfAThing, frozen=True, kw_only=True, tag_field="kind", tag="left"):
    """A thing that had entered a zone is in it no more.

    Attributes:
        inside_ms: from when it was first to when it was last seen inside.
        inside: how many are in the zone now: those that entered less those that left.
        why: how it is known.
    """

    zone: str
    inside_ms: int
    inside: int
    why: LeftBecause


class Crossed(_OfAThing, frozen=True, kw_only=True, tag_field="kind", tag="crossed"):
    """A thing has crossed a line.

    Attributes:
        direction: over a line from the top to the bottom, forward is from the picture's left to its right.
        forward, backward: how many have, this one included, since the agent started or the line was changed.
    """

    line: str
    direction: Literal["forward", "backward"]
    forward: int
    backward: int


class Updated(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="updated"):
    """An app's update cycle took a step.

    Attributes:
        state, before: the states after and before the step (skerry.update.State).
        event: what happened.
        release: the release that it is about; null if none is.
        why: the reason, in words with numbers; null if the step needs none.
    """

    app: str
    before: str
    event: str
    state: str
    release: str | None
    active: str | None
    why: str | None
    utc_ms: int
    trust: Trust
    mono_ms: int


SourceState = Literal["lost", "frozen", "back"]


class SourceChanged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="source"):
    """A source was lost, is frozen, or is back.

    Attributes:
        why: what is wrong; null when it is back.
    """

    source: str
    state: SourceState
    why: str | None
    utc_ms: int
    trust: Trust
    mono_ms: int


class NoVerdict(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="no-verdict"):
    """A frame that was to be answered, each one by its source's policy, is not.

    Attributes:
        frame: its number; null for a picture that could not be read.
        release: of the model that failed on it; null if none came to it.
        utc_ms, trust, mono_ms: when it was captured.
    """

    source: str
    frame: int | None
    release: str | None
    why: str
    utc_ms: int
    trust: Trust
    mono_ms: int


class ProofReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a proof measured of one variant on one device.

    Attributes:
        release: id of the release whose proof this is.
        input_sqnr_db, sqnr_db: the input, and the worst output, against the fp32 reference (skerry.execution.parity).
        same, decided: decided answers that agree, and how many there were.
        time_ms: median time of one frame through the whole path, with ``threads`` threads.
        time_ratio: over the fp32 variant's, frame by frame; null if that did not run here.
        refused: why the variant did not prove itself; null if it did.
    """

    release: str
    variant: str
    backend: str
    provider: str
    version: str
    threads: int
    input_sqnr_db: float
    sqnr_db: float
    same: int
    decided: int
    time_ms: float
    time_ratio: float | None
    peak_mib: float
    refused: str | None = None


Judged = Union[Entered, Dwelt, Left, Crossed]  # what rules make of answers
Event = Union[Seen, Entered, Dwelt, Left, Crossed, Updated, SourceChanged, NoVerdict]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it is delivered: ``stream`` and ``seq`` name it for ever, so that a receiver can drop a repeat.

    Attributes:
        event: an `Event`, as the bytes that were accepted: what a later version wrote passes through unharmed.
    """

    stream: str
    seq: int
    event: msgspec.Raw


def encode(message: msgspec.Struct) -> bytes:
    """One JSON document. Numbers must be finite: JSON has no other, and null would mean "not measured"."""
    return _ENCODER.encode(message)


def decode_event(raw: bytes) -> Event:
    """Raises `FormatError` if ``raw`` is not an event of this version."""
    return parse(raw, Event, "not an event")  # type: ignore[arg-type]


def decode_desired(raw: bytes) -> Desired:
    """Raises `FormatError` if ``raw`` is not a wish of this version."""
    return parse(raw, Desired, "not a wish")


_ENCODER = msgspec.json.Encoder()
