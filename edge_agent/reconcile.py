"""From the wish and the record to the next event. Pure, level-triggered: a wish that was missed is found again."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from skerry.update import Assigned, Record, State
from skerry.wire import Desired


def see(record: Record, desired: Desired) -> Record:
    """The record after a look at the wish: a new version's cleared rejections are taken out, once."""
    if desired.version <= record.seen_version:
        return record
    rejected = {release: why for release, why in record.rejected.items() if release not in desired.cleared}
    return msgspec.structs.replace(record, seen_version=desired.version, rejected=rejected)


def reconcile(desired: Desired | None, record: Record, app: str, held: Collection[str] = ()) -> Assigned | None:
    """What the wish asks for next, or None.

    Args:
        held: releases that failed for reasons that are not theirs, and are not to be tried again just yet.
    """
    if desired is None or app not in desired.apps or record.state is State.RETURNING:
        return None
    wanted = desired.apps[app].release
    if wanted in record.rejected or wanted in held:
        return None
    current = record.target or (record.active.release if record.active else None)
    return None if wanted == current else Assigned(wanted)
