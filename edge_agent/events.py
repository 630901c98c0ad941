"""Answers become events: rules that keep the noise out, then the outbox. One place before every sink."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from edge_agent.config import EventsConfig
from edge_agent.darkroom import EventPictures
from edge_agent.mailbox import Captured
from skerry.clock import Clock
from skerry.errors import SkerryError
from skerry.update import Happening, Record
from skerry.wire import Answer, Event, Judged, NoVerdict, Seen, SourceChanged, SourceState, Updated, encode

_log = logging.getLogger(__name__)


def gist(answers: Sequence[Answer]) -> tuple[str, ...]:
    """What a frame shows, without its numbers: the best label of a whole frame, the labels of all boxes."""
    if answers and answers[0].box is None:
        return (answers[0].label,)
    return tuple(sorted(answer.label for answer in answers))


def pictured(labels: Iterable[str], wanted: bool | list[str]) -> bool:  # noqa: FBT001 - a value of the configuration
    """Whether what is told of these labels is told with a picture."""
    return wanted if isinstance(wanted, bool) else any(label in wanted for label in labels)


class Journal(Protocol):
    """Where events are written down."""

    def append(self, event: bytes) -> int: ...


class Several:
    """Journals that get every event each. One that refuses does not keep it from the others."""

    def __init__(self, journals: Sequence[Journal]) -> None:
        self._journals = journals

    def append(self, event: bytes) -> int:
        """Raises what the last journal that refused raised."""
        refused: SkerryError | None = None
        for journal in self._journals:
            try:
                journal.append(event)
            except SkerryError as exc:
                refused = exc
        if refused is not None:
            raise refused
        return 0


class Events:
    """Turns answers and update steps into accepted events.

    Attributes:
        config: the rules; may be replaced while frames come.
        unrecorded: counts what the disk refused.
        heard: is called with each event that was written, in the thread that wrote it.
    """

    def __init__(
        self,
        config: EventsConfig,
        outbox: Journal,
        clock: Clock,
        wake: Callable[[], None],
        pictures: EventPictures | None = None,
    ) -> None:
        self.config, self._outbox, self._clock, self._wake, self._pictures = config, outbox, clock, wake, pictures
        self._shown: dict[str, tuple[str, ...]] = {}
        self._last: tuple[Captured, list[Answer]] | None = None
        self.unrecorded = 0
        self.heard: Callable[[bytes], None] = lambda _event: None

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        """Tells what a release said about a frame, if the rules want it told."""
        self._last = frame, answers
        told = [answer for answer in answers if answer.score >= self.config.min_score]
        shown = gist(told)
        if self.config.when == "change" and self._shown.get(frame.source) == shown:
            return
        self._shown[frame.source] = shown
        event = Seen(
            source=frame.source,
            frame=frame.number,
            release=release,
            answers=told,
            utc_ms=frame.utc.ms,
            trust=frame.utc.trust,
            mono_ms=int(frame.mono_s * 1000),
        )
        self._show(event, [answer.label for answer in told])

    def judged(self, event: Judged) -> None:
        """Tells what a rule made of answers; it comes right after the frame that made it certain was `seen`."""
        self._show(event, [event.label])

    def _show(self, event: Seen | Judged, labels: Sequence[str]) -> None:
        """Tells it with a picture of its frame, if that is wanted, and the frame is the newest one still."""
        if self._pictures is None or self._last is None or not pictured(labels, self.config.picture):
            self._accept(event)
            return
        frame, answers = self._last
        if (event.source, event.frame) == (frame.source, frame.number):
            self._pictures.tell(event, frame, answers, self._record)
        else:
            self._accept(event)

    def updated(self, app: str, before: Record, event: Happening, after: Record) -> None:
        """Tells that an update took a step."""
        now = self._clock.utc()
        self._accept(
            Updated(
                app=app,
                before=before.state.value,
                event=type(event).__name__.lower(),
                state=after.state.value,
                release=after.target or before.target,
                active=after.active.release if after.active else None,
                why=getattr(event, "why", None),
                utc_ms=now.ms,
                trust=now.trust,
                mono_ms=int(self._clock.monotonic() * 1000),
            )
        )

    def source_changed(self, source: str, state: SourceState, why: str | None) -> None:
        """Tells that a source was lost, is frozen or is back."""
        now, mono_ms = self._clock.utc(), int(self._clock.monotonic() * 1000)
        self._accept(
            SourceChanged(source=source, state=state, why=why, utc_ms=now.ms, trust=now.trust, mono_ms=mono_ms)
        )

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        """Tells that a frame that was to be answered is not; no frame: it could not even be read."""
        utc, mono_s = (frame.utc, frame.mono_s) if frame else (self._clock.utc(), self._clock.monotonic())
        self._accept(
            NoVerdict(
                source=source,
                frame=frame.number if frame else None,
                release=release,
                why=why,
                utc_ms=utc.ms,
                trust=utc.trust,
                mono_ms=int(mono_s * 1000),
            )
        )

    def _accept(self, event: Event) -> None:
        if self._pictures is None:
            self._record(event)
        else:
            self._pictures.then(event, self._record)

    def _record(self, event: Event) -> None:
        try:
            self._outbox.append(encoded := encode(event))
        except SkerryError as exc:
            if not self.unrecorded:
                _log.error("events are not recorded: %s", exc)
            self.unrecorded += 1
        else:
            self._wake()
            self.heard(encoded)
