"""Sources: one reader thread each, which puts frames into the mailbox as they come and never waits for anything else.

A looping source that breaks is opened again, with a growing pause, and says so once when it breaks and once when it is
back; any other ends there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Union

from edge_agent.config import SourceConfig
from edge_agent.mailbox import Captured, Mailbox
from skerry.clock import Clock
from skerry.errors import SourceError
from skerry.execution.frames import IMAGES, VIDEOS, open_video, read_image
from skerry.execution.processing import Frame

if TYPE_CHECKING:
    import av

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_IMAGE_RATE = 1.0  # images of a directory per second, in real time

# A picture, and when it is due in seconds since its source was opened.
Pictures = Iterator[tuple[float, Union[Frame, "av.VideoFrame"]]]


def check_source(config: SourceConfig) -> None:
    """Opens a source once, so that a wrong path is an error at the start and not a line in a log.

    Raises:
        SourceError: it cannot be read, with what was expected.
    """
    path = Path(config.path)
    if path.is_dir():
        if not _images(path):
            raise SourceError(f"{path} holds no image; expected {' '.join(sorted(IMAGES))}")
        return
    if not path.exists():
        raise SourceError(f"{path} is not there; expected a video file or a directory of images")
    if path.suffix.lower() not in VIDEOS | IMAGES:
        raise SourceError(f"{path} is neither a video ({' '.join(sorted(VIDEOS))}) nor a directory of images")
    with open_video(path):
        pass


def pictures(config: SourceConfig) -> Pictures:
    """The pictures of a source, once through."""
    path = Path(config.path)
    if path.is_dir():
        for number, image in enumerate(_images(path)):
            yield number / _IMAGE_RATE, read_image(image)
        return
    with open_video(path) as video:
        for number, frame in enumerate(video.frames()):
            yield number / video.rate, frame


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES)


class Reader:
    """The thread of one source. Use as a context manager: leaving it ends the thread."""

    def __init__(self, config: SourceConfig, mailbox: Mailbox, clock: Clock, finished: Callable[[str], None]) -> None:
        self._config, self._mailbox, self._clock, self._finished = config, mailbox, clock, finished
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"read-{config.label}", daemon=True)
        self._number = 0
        self.failing: str | None = None  # why the source cannot be read just now
        mailbox.add_source(config.label, config.queue if config.policy == "every" else None)

    @property
    def label(self) -> str:
        return self._config.label

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
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                before = self._number
                self._play()
                if not self._config.loop:
                    break
                if self._number == before:
                    raise SourceError(f"{self._config.path} gave no picture")  # noqa: TRY301 - one place handles it
                pause = _FIRST_PAUSE_S
            except SourceError as exc:
                self._failed(exc)
                if not self._config.loop:
                    break
                self._stop.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
        self._finished(self._config.label)

    def _play(self) -> None:
        """Puts the source's pictures into the mailbox, once through, at their own rate if asked to."""
        started = self._clock.monotonic()
        for due, picture in pictures(self._config):
            if self._config.realtime:
                self._stop.wait(max(0.0, started + due - self._clock.monotonic()))
            self._recovered()
            captured = Captured(self._config.label, self._number, self._clock.monotonic(), self._clock.utc(), picture)
            if self._stop.is_set() or not self._mailbox.put(captured):
                return
            self._number += 1

    def _failed(self, exc: SourceError) -> None:
        if self.failing is None:
            _log.warning("source %s lost: %s", self._config.label, exc)
        self.failing = str(exc)

    def _recovered(self) -> None:
        if self.failing is not None:
            _log.info("source %s is back", self._config.label)
            self.failing = None
