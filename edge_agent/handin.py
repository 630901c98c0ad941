"""Hands a bundle in on this device: what `skerry agent install` does, whether the agent runs or not."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent.app import Paths
from edge_agent.slots import Inbox
from skerry.bundle import Bundle, file_chunks, open_bundle, pack
from skerry.disk import Disk
from skerry.wire import MAIN_APP, Desired, Wish, decode_desired, encode


def hand_in(
    path: Path, paths: Paths, disk: Disk, trusted: Sequence[ec.EllipticCurvePublicKey], *, again: bool
) -> Bundle:
    """Verifies a bundle, puts it into the inbox, and makes it the wish.

    Args:
        again: takes back a rejection that the device remembers for this release.

    Raises:
        BundleError: it must not be used.
        StorageError: the disk refused; nothing was changed.
    """
    bundle = open_bundle(path, trusted)
    target = Inbox(paths.inbox, disk).path(bundle.release)
    if path.is_dir():
        pack(path, target, disk)
    else:
        disk.store(target, file_chunks(path))
    _wish(bundle.release, paths, disk, again=again)
    return bundle


def _wish(release: str, paths: Paths, disk: Disk, *, again: bool) -> None:
    """Writes the next version of the wish; one writer at a time."""
    lock = paths.data / "desired.lock"
    disk.append(lock).close()
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = current_wish(paths)
        wish = Desired(
            version=(before.version if before else 0) + 1,
            apps={**(before.apps if before else {}), MAIN_APP: Wish(release=release)},
            cleared=[release] if again else [],
        )
        disk.replace(paths.desired, encode(wish))


def current_wish(paths: Paths) -> Desired | None:
    """The wish that lies on this device, if there is one."""
    try:
        return decode_desired(paths.desired.read_bytes())
    except FileNotFoundError:
        return None
