"""What a new release must show on live frames before it is kept. Pure.

Silence proves nothing: a source that gives no frames neither passes a probation nor fails it.
"""

from __future__ import annotations

import math
from typing import Union

from edge_agent.config import ProbationPolicy
from edge_agent.counts import Counts
from skerry.update import Failed, Kept

_Z = 2.33  # one-sided 99 %


def judge(seen: Counts, before: Counts | None, elapsed_s: float, policy: ProbationPolicy) -> Union[Kept, Failed, None]:
    """The verdict on a release so far, or None while it is open.

    A share that is over its limit beyond chance (by the lower end of its interval) fails the release at once; at the
    end of the probation the share itself decides.

    Args:
        seen: what became of the frames captured since the release went live.
        before: the same of the release before it, over a window as long; None if there was none.
        elapsed_s: seconds since it went live.
    """
    over = elapsed_s >= policy.seconds and seen.processed >= policy.min_frames
    share = _share if over else lower_end
    answered = seen.processed + seen.failed
    if share(seen.failed, answered) > policy.max_failed:
        return Failed(f"{seen.failed} of {answered} live frames failed, {policy.max_failed:.0%} allowed", verdict=True)
    # Frames go by in bursts: a moment of load takes several, which says nothing, however many they are of a few.
    if before is not None and before.captured and seen.captured >= policy.min_frames:
        then = _share(before.superseded, before.captured)
        if share(seen.superseded, seen.captured) > then + policy.max_more_superseded:
            return Failed(
                f"too slow for the live stream: it let {_share(seen.superseded, seen.captured):.0%} of {seen.captured} "
                f"frames go by, the release before it {then:.0%}, {policy.max_more_superseded:.0%} more allowed",
                verdict=True,
            )
    return Kept() if over else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def lower_end(part: int, whole: int) -> float:
    """The lower end of a share's one-sided 99 % interval.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if not part:
        return 0.0  # exactly: rounding would leave a little more
    share, z2 = part / whole, _Z * _Z
    centre = share + z2 / (2 * whole)
    spread = _Z * math.sqrt(share * (1 - share) / whole + z2 / (4 * whole * whole))
    return max(0.0, (centre - spread) / (1 + z2 / whole))
