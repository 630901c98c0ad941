"""What a compilation may cost: ``--max-drop`` in points of accuracy, ``--max-latency`` in time for one frame.

Also what these options ask of the others: points need labelled samples, a latency needs the machine that it is for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import FormatError, UsageError

DEFAULT_MAX_DROP = 1.0  # what the search aims at where labelled samples are given and no limit is
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_LATENCY = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s)\s*", re.ASCII)
_POINTS = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*", re.ASCII)
_LAST = "last.json"


@dataclass(frozen=True)
class Budget:
    """The limits; None sets none.

    Attributes:
        max_drop: points that the metric may lose against fp32: held to the upper end of the 95 % interval.
        max_latency_ms: median time of one frame, one thread, on this machine: held to the same end.
    """

    max_drop: float | None = None
    max_latency_ms: float | None = None

    @property
    def aim(self) -> float:
        """The drop that the search stays within."""
        return DEFAULT_MAX_DROP if self.max_drop is None else self.max_drop


NO_LIMITS = Budget()


def parse_drop(text: str) -> float:
    """``--max-drop``: points of accuracy or AP50, of 100."""
    found = _POINTS.fullmatch(text)
    points = float(found[1]) if found else math.nan
    if not 0.0 < points <= 100.0:
        raise UsageError(
            f"--max-drop {text}: expected points of accuracy above 0, for example 0.5 (of 100; no finite number of "
            "samples can show a drop of nothing)"
        )
    return points


def parse_latency(text: str) -> float:
    """``--max-latency`` in milliseconds: a number and its unit."""
    found = _LATENCY.fullmatch(text)
    milliseconds = float(found[1]) * _UNITS_MS[found[2]] if found else 0.0
    if milliseconds <= 0.0:
        raise UsageError(f"--max-latency {text}: expected a time with its unit, for example 5ms, 800us or 0.5s")
    return milliseconds


def budget(max_drop: str | None, max_latency: str | None, *, labelled: bool) -> Budget:
    """The budget that the options ask for.

    Args:
        labelled: there are samples to count accuracy on (``--eval``).

    Raises:
        UsageError: an option that makes no sense, alone or here.
    """
    found = Budget(
        parse_drop(max_drop) if max_drop is not None else None,
        parse_latency(max_latency) if max_latency is not None else None,
    )
    if found.max_drop is not None and not labelled:
        raise UsageError(
            f"--max-drop {max_drop} needs labelled samples to count on: name their folder with --eval (a folder per "
            "class, or images with VOC's XML or COCO's JSON)"
        )
    return found


def refused_latencies(found: Budget, unmeasured: Mapping[str, str | None]) -> dict[str, str]:
    """Why a latency is not promised, by variant that this machine cannot run.

    Args:
        unmeasured: for each variant but fp32, why this machine cannot run it, or None if it can.

    Raises:
        UsageError: it can run none of them.
    """
    if found.max_latency_ms is None:
        return {}
    away = {variant: why for variant, why in unmeasured.items() if why is not None}
    refused = {
        variant: f"--max-latency is not held for {variant}: {why}, and a time that was not measured there is a guess"
        for variant, why in away.items()
    }
    if away and len(away) == len(unmeasured):
        reasons = "; ".join(f"{variant}: {why}" for variant, why in away.items())
        raise UsageError(
            f"--max-latency {found.max_latency_ms:g}ms cannot be measured here for any variant asked for ({reasons}); "
            "compile on the device, or leave the limit to its proof"
        )
    return refused


# --- --resume ------------------------------------------------------------------------------------------------------


class _Last(msgspec.Struct):
    """The compilation that a work directory was last used for."""

    folder: str
    arguments: list[str]


def remember(work: Path, folder: Path, arguments: Sequence[str], disk: Disk) -> None:
    """Keeps what ``--resume`` goes on with: the command's arguments and the folder that it was given in."""
    disk.make_dirs(work)
    disk.replace(work / _LAST, msgspec.json.encode(_Last(str(folder.resolve()), list(arguments))))


def check_alone(given: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Raises `UsageError` if ``--resume`` comes with more than ``--work``: what it goes on with is all decided."""
    more = [name for name, value in given.items() if name not in ("resume", "work") and value != defaults[name]]
    if more:
        raise UsageError(
            f"--resume goes on with the last command as it was, without {', '.join(more)}; for another, give the "
            "command whole: what is done of it is found done"
        )


def recall(work: Path, folder: Path) -> list[str]:
    """The arguments of the last compilation in ``work``: every pass of it that ended is found done.

    Raises:
        UsageError: there was none, or its paths start from another folder.
    """
    path = work / _LAST
    try:
        last = parse(path.read_bytes(), _Last, str(path))
    except (OSError, FormatError) as exc:
        raise UsageError(f"nothing to resume: no compilation was begun in {work}; give the command whole") from exc
    if last.folder != str(folder.resolve()):
        raise UsageError(f"the compilation to resume was begun in {last.folder}; run it from there")
    return last.arguments
