"""What was once released opens, verifies and proves itself for ever.

A folder per released format, never written again: ``bundle/`` as it was signed, ``signer.pub`` the key that its users
trust, ``release`` its release id, ``packed.sha256`` the digest of its ``.skb``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tiny

from skerry.bundle import open_bundle, pack
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.errors import KeyNotTrusted
from skerry.execution.prove import measure
from skerry.manifest import FLOOR
from skerry.signing import load_public_key

RELEASED = sorted(Path(__file__).parent.glob("bundle-*"))

every_released = pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)


def stored(folder, name):
    return (folder / name).read_text(encoding="ascii").strip()


def test_no_released_format_is_lost():
    assert {folder.name for folder in RELEASED} >= {"bundle-1.0"}


@every_released
def test_a_released_bundle_opens_under_the_key_and_the_id_of_its_release(folder):
    opened = open_bundle(folder / "bundle", [load_public_key(folder / "signer.pub")])

    assert opened.release == stored(folder, "release")
    assert opened.manifest.format == f"skerry.bundle/{folder.name.removeprefix('bundle-')}"
    assert (opened.manifest.name, opened.manifest.version) == ("released", 1)


@every_released
def test_a_released_bundle_opens_under_no_other_key(folder):
    with pytest.raises(KeyNotTrusted):
        open_bundle(folder / "bundle", [tiny.OTHER_KEY.public_key()])


@every_released
def test_a_released_bundle_packs_into_the_archive_of_its_release(folder, tmp_path):
    trusted = [load_public_key(folder / "signer.pub")]
    packed = tmp_path / "released.skb"

    pack(folder / "bundle", packed, Disk())

    assert hashlib.sha256(packed.read_bytes()).hexdigest() == stored(folder, "packed.sha256")
    assert open_bundle(packed, trusted) == open_bundle(folder / "bundle", trusted)


@every_released
def test_a_released_bundle_still_proves_itself(folder):
    manifest = open_bundle(folder / "bundle", [load_public_key(folder / "signer.pub")]).manifest

    reports = measure(folder / "bundle", [v.id for v in manifest.variants], FLOOR, threads=1, clock=SystemClock())

    assert [report.variant for report in reports] == [v.id for v in manifest.variants]
    assert [report.refused for report in reports] == [None] * len(reports)
    assert {report.release for report in reports} == {stored(folder, "release")}
