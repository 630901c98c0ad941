"""Whether a rollout's next wave may open: a function of what devices measured, the policy and the clock. Pure.

The unit of evidence is the device. Only what it reported about *this* release counts, after its own proof and a soak in
service. Silence is never success and never proof of harm: a device that was never there has a rule and a clock, and one
that took the release and then went silent asks a person, since the release may be the reason.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Union

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Whole = Annotated[int, msgspec.Meta(ge=0)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a wave must show.

    Attributes:
        soak_s: how long a device must have kept the release in service, by its own clock.
        max_harmed: how many devices of all open waves may refuse it or return from it.
        min_share: of a wave, rounded up, must have passed; the rest may be absent once the clock ran out.
        offline_after_s: a device that was not heard of for so long is offline.
        clock_s: how long a wave, or the taking back, may take until a person is asked.
    """

    soak_s: Whole = 600
    max_harmed: Whole = 0
    min_share: Share = 0.9
    offline_after_s: Whole = 900
    clock_s: Annotated[int, msgspec.Meta(ge=1)] = 86_400


@dataclass(frozen=True)
class DeviceEvidence:
    """What one device reported about the rollout's release, and when it was last heard of.

    Attributes:
        heard_s: seconds since its last message; None if it was never heard of.
        took_it: it reported to fetch, prove or run the release, ever since it was offered.
        active: the release is in service there.
        proved: its own proof of this release held, by a report that names the release.
        kept: its probation of the release is over.
        soaked_s: how long it has been kept, by the device's own clock.
        harm: why the device rejected the release or returned from it; None if it did not.
    """

    device: str
    heard_s: float | None = None
    took_it: bool = False
    active: bool = False
    proved: bool = False
    kept: bool = False
    soaked_s: float = 0.0
    harm: str | None = None


class Standing(enum.StrEnum):
    """How one device stands to the release."""

    PASSED = "passed"
    HARMED = "harmed"
    WAITING = "on its way"
    SILENT = "silent since it took it"
    ABSENT = "offline"


@dataclass(frozen=True)
class GoOn:
    """The wave has passed."""

    numbers: str


@dataclass(frozen=True)
class TakeBack:
    """The release does harm."""

    because: str


@dataclass(frozen=True)
class Ask:
    """The clock ran out and something is missing that only a person can weigh."""

    missing: str


@dataclass(frozen=True)
class Wait:
    """Nothing is decided, and there is time."""

    numbers: str


Verdict = Union[GoOn, TakeBack, Ask, Wait]


def standing(evidence: DeviceEvidence, policy: Policy) -> Standing:
    """How a device stands. What it said stays true when it goes silent; what it did not say, it did not say."""
    if evidence.harm is not None:
        return Standing.HARMED
    if evidence.active and evidence.proved and evidence.kept and evidence.soaked_s >= policy.soak_s:
        return Standing.PASSED
    if evidence.heard_s is not None and evidence.heard_s <= policy.offline_after_s:
        return Standing.WAITING
    return Standing.SILENT if evidence.took_it else Standing.ABSENT


def judge(
    waves: Sequence[Sequence[str]],
    evidence: Mapping[str, DeviceEvidence],
    policy: Policy,
    *,
    clock_ran_out: bool,
) -> Verdict:
    """The verdict on the newest of the open waves.

    Args:
        waves: the devices of all open waves, the newest last.
        evidence: by device; one without evidence was never heard of.
    """
    devices = [device for wave in waves for device in wave]
    stands = {device: standing(evidence.get(device, DeviceEvidence(device)), policy) for device in devices}
    told = _numbers(stands)
    harmed = [device for device in devices if stands[device] is Standing.HARMED]
    if len(harmed) > policy.max_harmed:
        first = evidence[harmed[0]]
        return TakeBack(f"{told}; {first.device}: {first.harm}; at most {policy.max_harmed} may be harmed")
    newest = [stands[device] for device in waves[-1]]
    passed, wanted = newest.count(Standing.PASSED), max(1, math.ceil(policy.min_share * len(newest)))
    open_ones = [device for device in devices if stands[device] in (Standing.WAITING, Standing.SILENT)]
    if not open_ones and passed >= wanted and (clock_ran_out or Standing.ABSENT not in newest):
        return GoOn(told)
    if not clock_ran_out:
        return Wait(told)
    return Ask(f"{told}; {wanted} of the wave's {len(newest)} must pass, {passed} did{_named(open_ones)}")


def _numbers(stands: Mapping[str, Standing]) -> str:
    counts = Counter(stands.values())
    return f"of {len(stands)} devices " + ", ".join(f"{counts[s]} {s.value}" for s in Standing if counts[s])


def _named(devices: Sequence[str]) -> str:
    if not devices:
        return ""
    more = f" and {len(devices) - 3} more" if len(devices) > 3 else ""
    return f"; not decided: {', '.join(devices[:3])}{more}"
