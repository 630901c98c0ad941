"""Hears what an agent's parts tell, in place of its events."""

from __future__ import annotations

from edge_agent.mailbox import Captured
from skerry.wire import Answer


class Heard:
    """Keeps everything."""

    def __init__(self) -> None:
        self.answers: list[tuple[Captured, str, list[Answer]]] = []
        self.without: list[tuple[str, int | None, str]] = []
        self.failed_releases: set[str] = set()
        self.changes: list[tuple[str, str, str | None]] = []

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        self.answers.append((frame, release, answers))

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        self.failed_releases |= {release} if release else set()
        self.without.append((source, frame.number if frame else None, why))

    def source_changed(self, source: str, state: str, why: str | None) -> None:
        self.changes.append((source, state, why))
