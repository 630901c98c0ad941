"""Time, randomness and identity: the only module that asks the machine for them. Everything else is given them."""

from __future__ import annotations

import enum
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_RTC = Path("/sys/class/rtc/rtc0")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Trust(str, enum.Enum):
    """Where a wall-clock time comes from, best first."""

    HUB = "hub"
    RTC = "rtc"
    NONE = "none"


@dataclass(frozen=True)
class Utc:
    """Wall-clock time in milliseconds since 1970, and how far to believe it."""

    ms: int
    trust: Trust


class Clock(Protocol):
    """What a decision may know of time. ``monotonic`` never goes back within one boot; ``utc`` may jump."""

    def utc(self) -> Utc: ...

    def monotonic(self) -> float:
        """Seconds since some point of this boot."""

    async def wait(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clock."""

    def utc(self) -> Utc:
        # A box without a real-time clock starts at some old date after each power cut: say so instead of guessing.
        return Utc(time.time_ns() // 1_000_000, Trust.RTC if _RTC.exists() else Trust.NONE)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """For command lines; the agent waits in its event loop."""
        time.sleep(seconds)

    async def wait(self, seconds: float) -> None:
        import asyncio  # noqa: PLC0415 - the agent's parent process has a clock and no event loop

        await asyncio.sleep(seconds)


def processor_s() -> float:
    """Seconds that processors have spent on this process, all its threads together."""
    return time.process_time()


def new_id() -> str:
    """A fresh identity: 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def boot_id() -> str:
    """The kernel's name for this boot: the same after a crash of ours, another one after a power cut."""
    return _BOOT_ID.read_text(encoding="ascii").strip()
