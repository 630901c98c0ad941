"""What a work directory tells, remembered."""

from __future__ import annotations


class Passes:
    """Which passes ran, and which of them had been done before."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.resumed: list[str] = []

    def began(self, name: str) -> None:
        """Nothing to remember."""

    def ended(self, name: str, seconds: float | None) -> None:
        (self.resumed if seconds is None else self.ran).append(name)
