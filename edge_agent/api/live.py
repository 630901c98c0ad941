"""The newest answered frame of each source, for whoever looks; and verdicts for whoever pushed a picture.

Both hear each frame in the worker's thread and only keep a reference: making pictures is the viewer's work.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from edge_agent.gate import Gate
from edge_agent.mailbox import Captured
from skerry.execution.processing import Frame
from skerry.wire import Answer

_WIDEST = 960  # pixels of a live view
_QUALITY = 80


@dataclass(frozen=True)
class Answered:
    """A frame and what a release said about it."""

    frame: Captured
    release: str
    answers: list[Answer]


class Newest:
    """Keeps the newest answered frame of each source."""

    def __init__(self) -> None:
        self._newest: dict[str, Answered] = {}

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        self._newest[frame.source] = Answered(frame, release, answers)

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        """Nothing to show."""

    def of(self, source: str) -> Answered | None:
        return self._newest.get(source)


class Verdicts:
    """Gives each pushed picture's verdict to whoever waits for it."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], Future[Answered]] = {}

    def expect(self, frame: Captured) -> Future[Answered]:
        """The verdict on a frame that is about to be handed in; a `LookupError` if there will be none."""
        future: Future[Answered] = Future()
        self._waiting[frame.source, frame.number] = future
        return future

    def forget(self, frame: Captured) -> None:
        """Nobody waits any more."""
        self._waiting.pop((frame.source, frame.number), None)

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        if (future := self._waiting.pop((frame.source, frame.number), None)) is not None:
            future.set_result(Answered(frame, release, answers))

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        if frame is not None and (future := self._waiting.pop((source, frame.number), None)) is not None:
            by = f" (release {release[:12]})" if release else ""
            future.set_exception(LookupError(f"{why}{by}"))


def picture(gate: Gate, sink: str, answered: Answered, *, small: bool) -> bytes | None:
    """A JPEG of what may leave by ``sink``; None if nothing may."""
    pixels = gate.open(sink, answered.frame, answered.answers)
    return None if pixels is None else jpeg(pixels, widest=_WIDEST if small else None)


def jpeg(pixels: Frame, widest: int | None = None) -> bytes:
    """Encodes RGB pixels, made smaller if they are wider than ``widest``."""
    from PIL import Image  # noqa: PLC0415 - only where somebody looks

    image = Image.fromarray(pixels)
    if widest is not None and image.width > widest:
        image = image.resize((widest, round(image.height * widest / image.width)))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


class Stream:
    """Events for those who listen: each has a queue of its own, and one that does not read loses the oldest.

    Args:
        call: runs a function in the event loop's thread.
    """

    def __init__(self, call: Callable[[Callable[[], None]], object]) -> None:
        self._call = call
        self._listeners: set[Callable[[bytes], None]] = set()

    def heard(self, event: bytes) -> None:
        """From any thread."""
        if self._listeners:
            self._call(lambda: self._give(event))

    def _give(self, event: bytes) -> None:
        for listener in list(self._listeners):
            listener(event)

    def listen(self, listener: Callable[[bytes], None]) -> None:
        self._listeners.add(listener)

    def leave(self, listener: Callable[[bytes], None]) -> None:
        self._listeners.discard(listener)
