"""What a new release must show on live frames before it is kept. Pure.

Silence proves nothing: a source that gives no frames neither passes a probation nor fails it.
"""

from __future__ import annotations

from typing import Union

from edge_agent.config import ProbationPolicy
from edge_agent.mailbox import Counts
from skerry.update import Failed, Kept

_FEW = 20  # frames that must be answered before a share of failures means something


def judge(seen: Counts, before: Counts | None, elapsed_s: float, policy: ProbationPolicy) -> Union[Kept, Failed, None]:
    """The verdict on a release so far, or None while it is open.

    Args:
        seen: what became of the frames captured since the release went live.
        before: the same of the release before it, over a window as long; None if there was none.
        elapsed_s: seconds since it went live.
    """
    answered = seen.processed + seen.failed
    if answered >= _FEW and seen.failed > policy.max_failed * answered:
        return Failed(f"{seen.failed} of {answered} live frames failed, {policy.max_failed:.0%} allowed", verdict=True)
    if before is not None and before.captured and seen.captured >= policy.min_frames:
        now_share, then_share = superseded_share(seen), superseded_share(before)
        if now_share - then_share > policy.max_more_superseded:
            return Failed(
                f"too slow for the live stream: it let {now_share:.0%} of {seen.captured} frames go by, the release "
                f"before it {then_share:.0%}, {policy.max_more_superseded:.0%} more allowed",
                verdict=True,
            )
    if elapsed_s >= policy.seconds and seen.processed >= policy.min_frames:
        return Kept()
    return None


def superseded_share(counts: Counts) -> float:
    """The share of the captured frames that a newer one replaced before they were looked at."""
    return counts.superseded / counts.captured if counts.captured else 0.0
