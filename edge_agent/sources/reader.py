"""One reader thread per source: puts frames into the mailbox as they come and never waits for anything else.

A camera that is lost is opened again, with a jittered, growing pause, and so is a looping file that breaks; it is said
once when it goes and once when it is back. Any other source ends where it breaks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge_agent.config import SourceConfig
from edge_agent.mailbox import Captured, Mailbox, Picture, Put
from edge_agent.sources import decoded, files, gstreamer
from edge_agent.sources.address import Address, Kind, parse
from edge_agent.sources.credentials import Credentials
from edge_agent.sources.still import FROZEN_S, Stillness
from skerry.backoff import Backoff
from skerry.clock import Clock
from skerry.errors import SkerryError, SourceError
from skerry.wire import SourceState

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = {True: 2.0, False: 30.0}  # of a camera: it must be back soon after its fault is gone; of a file


class Tell(Protocol):
    """Hears what becomes of sources."""

    def source_changed(self, source: str, state: SourceState, why: str | None) -> None:
        """A source is lost, frozen, or back."""

    def no_verdict(self, source: str, frame: Captured | None, why: str) -> None:
        """A frame that was to be answered is not; None where it could not even be read."""


@dataclass(frozen=True)
class Shot:
    """One picture of a source.

    Attributes:
        due_s: of a file, when it is due, in seconds since the first.
        mono_s: when it was captured, if that was before it came here.
    """

    picture: Picture
    due_s: float | None = None
    mono_s: float | None = None


def check_source(config: SourceConfig) -> Address:
    """Looks at a source once, so that a wrong path is an error at the start and not a line in a log.

    A camera that does not answer now may well answer later: that is no error.

    Raises:
        SourceError: it is none, or cannot be read, with what was expected.
    """
    address = parse(config.url)
    if config.watch and address.kind is not Kind.FOLDER:
        raise SourceError(f"{config.url}: watch = true is for folders")
    if config.reader == "gstreamer" and address.kind is not Kind.PUSH:
        gstreamer.check(config.pipeline)
    if address.kind is Kind.CSI and config.reader != "gstreamer":
        raise SourceError(f'{config.url} is a camera of the board: it needs reader = "gstreamer", pipeline = "jetson"')
    if address.kind is Kind.FOLDER and not config.watch:
        files.check_folder(Path(address.where))
    if address.kind is Kind.CLIP and config.reader == "pyav":
        files.check_clip(Path(address.where))
    return address


class Reader:
    """The thread of one source.

    Attributes:
        failing: why the source cannot be read just now, or is not to be believed.
    """

    def __init__(
        self,
        config: SourceConfig,
        credentials: Credentials | None,
        mailbox: Mailbox,
        clock: Clock,
        tell: Tell,
        finished: Callable[[str], None],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._config, self._credentials = config, credentials
        self._mailbox, self._clock, self._tell, self._finished = mailbox, clock, tell, finished
        self._address = parse(config.url)
        self._goes_on = self._address.kind.live or config.loop or config.watch or self.pushed
        self._backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S[self._address.kind.live], uniform)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"read-{config.label}", daemon=True)
        self._number = 0
        self._stillness = Stillness()
        self.failing: str | None = None
        mailbox.add_source(config.label, config.queue if config.policy == "every" else None)

    @property
    def label(self) -> str:
        return self._config.label

    @property
    def lost_for_good(self) -> str | None:
        """Why the source ended before its end."""
        return None if self._goes_on else self.failing

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; `join` waits for it."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended by then, or never began."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                before = self._number
                self._play()
                if not self._goes_on:
                    break
                if self._number == before and not self._stop.is_set():
                    raise SourceError(f"{self._config.url} gave no picture")
            except SkerryError as exc:
                self._say("lost", str(exc))
                if not self._goes_on:
                    break
                self._stop.wait(self._backoff.pause_s())
        self._finished(self._config.label)

    def _play(self) -> None:
        """Puts the source's pictures into the mailbox, once through, a file's at their own rate if asked to."""
        if self._address.kind is Kind.PUSH:
            self._stop.wait()
            return
        started = self._clock.monotonic()
        for shot in self._shots():
            if self._config.realtime and shot.due_s is not None:
                self._stop.wait(max(0.0, started + shot.due_s - self._clock.monotonic()))
            if self._stop.is_set() or not self._put(shot):
                return
            self._look(shot.picture)
            self._backoff.worked()

    def offer(self, picture: Picture, heard: Callable[[Captured], None]) -> Put:
        """Hands in a picture that was pushed; ``heard`` gets its frame first. For sources of that kind alone."""
        frame = self._frame(Shot(picture))
        heard(frame)
        return self._mailbox.put(frame, wait=False)

    @property
    def pushed(self) -> bool:
        """Its pictures come by `offer`."""
        return self._address.kind is Kind.PUSH

    def _put(self, shot: Shot) -> bool:
        """Whether the mailbox takes more."""
        frame = self._frame(shot)
        put = self._mailbox.put(frame, wait=not self._address.kind.live)
        if put is Put.FULL:
            self._tell.no_verdict(frame.source, frame, f"{self._config.queue} frames wait already, no more may")
        return put is not Put.CLOSED

    def _frame(self, shot: Shot) -> Captured:
        """The next frame."""
        captured = shot.mono_s or self._clock.monotonic()
        due = captured + self._config.deadline_ms / 1000 if self._config.deadline_ms is not None else None
        if self._config.policy == "every" and due is None:
            due = float("inf")
        frame = Captured(self._config.label, self._number, captured, self._clock.utc(), shot.picture, due)
        self._number += 1
        return frame

    def _shots(self) -> Iterator[Shot]:
        """The pictures of the source, once through or for ever."""
        config, address, where = self._config, self._address, Path(self._address.where)
        if address.kind is Kind.FOLDER:
            if config.watch:
                unread = lambda why: self._tell.no_verdict(config.label, None, why)  # noqa: E731
                return (Shot(picture) for picture in files.watched(where, self._stop.wait, unread))
            return (Shot(picture, due) for due, picture in files.folder(where))
        if config.reader == "gstreamer":
            drop = config.policy == "latest" and address.kind.live
            found = gstreamer.pictures(address, self._credentials, config.pipeline, config.silence_s, drop=drop)
            live = address.kind.live
            return (Shot(d.frame, None if live else d.stream_s, d.mono_s if live else None) for d in found)
        if address.kind is Kind.CLIP:
            return (Shot(picture, due) for due, picture in files.clip(where))
        cameras = decoded.pictures(address, self._credentials, config.silence_s, self._clock.monotonic)
        return (Shot(picture) for picture in cameras)

    def _look(self, picture: Picture) -> None:
        """Says that the source is back, or that it is frozen."""
        if self._address.kind.live and self._stillness.look(_luma(picture), self._clock.monotonic()):
            self._say("frozen", f"the same picture for {FROZEN_S:.0f} s, bit by bit")
        elif self.failing is not None:
            self._say("back", None)

    def _say(self, state: SourceState, why: str | None) -> None:
        """Once for each change."""
        before, self.failing = self.failing, why
        if (before is None) == (why is None):
            return
        if why is None:
            _log.info("source %s is back", self._config.label)
        else:
            _log.warning("source %s %s: %s", self._config.label, state, why)
        self._tell.source_changed(self._config.label, state, why)


def _luma(picture: Picture) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The brightness of a decoded picture, in place; of pixels, all of them."""
    if isinstance(picture, np.ndarray):
        return picture
    plane: Any = picture.planes[0]  # a buffer, which its types do not say
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return np.asarray(rows[: picture.height, : picture.width])
