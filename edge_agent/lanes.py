"""The hub's outboxes: a live one, and those that filled while the hub was away.

Each is an event log with a stream of its own, so that the hub takes new events in while old ones still wait: a device
that was offline for a day does not report today's intruder behind yesterday's passers-by.

    <folder>/<number>/    an outbox (edge_agent.outbox); the highest number is live
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from edge_agent.outbox import Outbox
from skerry.disk import Disk
from skerry.errors import FormatError
from skerry.messages import MAX_BATCH, MAX_STREAMS

_FEW = 64  # events that are quickly sent: not worth a stream of their own


class Lanes:
    """The live log and the backlog. `append` may be called from any thread, the rest from one at a time."""

    def __init__(self, folder: Path, disk: Disk, max_bytes: int, new_id: Callable[[], str]) -> None:
        self._folder, self._disk, self._max_bytes, self._new_id = folder, disk, max_bytes, new_id
        self._lock = threading.Lock()
        disk.make_dirs(folder)
        numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) or [1]
        self._number = numbers[-1]
        self._logs = [self._open(number) for number in numbers]
        self.acknowledged = self.lost = 0

    def _open(self, number: int) -> Outbox:
        return Outbox(self._path(number), self._disk, self._max_bytes // 2, self._new_id)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}"

    def append(self, event: bytes) -> int:
        """Writes an event into the live log.

        Raises:
            FormatError: it is larger than any message may be.
            StorageError: the disk refused.
        """
        if len(event) > MAX_BATCH:
            raise FormatError(f"an event of {len(event)} bytes; {MAX_BATCH} are the most that the link carries")
        with self._lock:
            return self._logs[-1].append(event)

    def sync(self) -> None:
        """Accepts what was appended."""
        for log in list(self._logs):
            log.sync()

    @property
    def live(self) -> Outbox:
        return self._logs[-1]

    @property
    def backlog(self) -> Outbox | None:
        """The oldest log with events that wait, other than the live one."""
        return next((log for log in self._logs[:-1] if log.waiting), None)

    @property
    def streams(self) -> list[str]:
        """Oldest first."""
        return [log.stream for log in self._logs]

    @property
    def waiting(self) -> int:
        """Events that are accepted and not acknowledged."""
        return sum(log.waiting for log in self._logs)

    def log(self, stream: str) -> Outbox | None:
        """The log of that stream, if it is still here."""
        return next((log for log in self._logs if log.stream == stream), None)

    def split(self) -> None:
        """Begins a new live log if many events wait in this one. Called when the hub is back."""
        with self._lock:
            if self.live.waiting > _FEW and len(self._logs) < MAX_STREAMS:
                self._number += 1
                self._logs.append(self._open(self._number))

    def acknowledge(self, stream: str, last: int) -> bool:
        """The hub has every event of the stream up to ``last``. Whether that is news."""
        log = self.log(stream)
        if log is None or not log.delivered < last <= log.accepted:
            return False
        self.acknowledged += last - log.delivered
        log.deliver(last)
        return True

    def tidy(self) -> None:
        """Remembers what was acknowledged, and drops logs of which nothing is left to send."""
        for log in list(self._logs):
            log.save_cursor()
        with self._lock:
            done = [log for log in self._logs[:-1] if not log.waiting]
            self._logs = [log for log in self._logs if log not in done]
        for log in done:
            log.close()
            self._disk.remove_tree(log.folder)

    def close(self) -> None:
        """Accepts what was appended, and remembers what was acknowledged."""
        for log in self._logs:
            log.close()
