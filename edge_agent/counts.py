"""What became of frames: numbers that add up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """What became of a source's frames. ``waiting`` ones are in the mailbox or being processed."""

    captured: int = 0
    processed: int = 0
    superseded: int = 0
    failed: int = 0

    @property
    def waiting(self) -> int:
        return self.captured - self.processed - self.superseded - self.failed

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.captured - other.captured,
            self.processed - other.processed,
            self.superseded - other.superseded,
            self.failed - other.failed,
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.captured + other.captured,
            self.processed + other.processed,
            self.superseded + other.superseded,
            self.failed + other.failed,
        )
