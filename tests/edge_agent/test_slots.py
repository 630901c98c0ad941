"""Slots, the record, the inbox: what is on disk is whole, or is not there."""

from __future__ import annotations

import io

import google_crc32c
import pytest
import tiny

from edge_agent.app import Paths
from edge_agent.handin import current_wish, hand_in
from edge_agent.slots import Inbox, Records, Slots
from skerry.bundle import every_variant, open_directory
from skerry.disk import Disk
from skerry.errors import BundleError, DigestMismatch, FormatError, KeyNotTrusted
from skerry.manifest import Requires
from skerry.update import Chosen, Record, State
from skerry.wire import ProofReport

REPORT = ProofReport(
    release="r", variant="fp32", backend="onnxrt", provider="CPU", version="1", threads=1, input_sqnr_db=50.0,
    sqnr_db=40.0, same=6, decided=6, time_ms=1.0, time_ratio=None, peak_mib=50.0,
)  # fmt: skip


@pytest.fixture
def slots(tmp_path) -> Slots:
    return Slots(tmp_path / "slots", Disk(), tiny.trusted())


def stage(slots: Slots, path, release: str, choose=every_variant):
    with path.open("rb") as source:
        return slots.stage(release, source, choose)


def test_a_release_is_staged_whole(slots, tmp_path):
    path, release = tiny.Tiny().pack(tmp_path)
    assert not slots.holds(release)
    stage(slots, path, release)
    assert slots.holds(release)
    assert open_directory(slots.folder(release), tiny.trusted()).release == release


def test_only_the_chosen_variant_is_kept(slots, tmp_path):
    two = tiny.Tiny(variants={"fp32": tiny.model(), "int8": tiny.model()}, requires={"int8": Requires(cpu=["vnni"])})
    path, release = two.pack(tmp_path)
    stage(slots, path, release, lambda manifest: [manifest.variant("fp32")])
    assert [p.name for p in (slots.folder(release) / "variants").iterdir()] == ["fp32"]


@pytest.mark.parametrize("wrong", ["another release", "another signer", "cut off", "not a bundle"])
def test_nothing_is_left_of_what_is_refused(slots, tmp_path, wrong):
    path, release = tiny.Tiny(key=tiny.OTHER_KEY if wrong == "another signer" else tiny.KEY).pack(tmp_path)
    raw = {"cut off": path.read_bytes()[:-3000], "not a bundle": b"hello"}.get(wrong, path.read_bytes())
    errors = {"another release": DigestMismatch, "another signer": KeyNotTrusted}
    with pytest.raises(errors.get(wrong, BundleError)):
        slots.stage("0" * 64 if wrong == "another release" else release, io.BytesIO(raw), every_variant)
    assert list((tmp_path / "slots").iterdir()) == []


def test_collecting_keeps_what_is_in_use_and_nothing_else(slots, tmp_path):
    releases = []
    for version in (1, 2, 3):
        path, release = tiny.Tiny(version=version).pack(tmp_path)
        stage(slots, path, release)
        slots.save_proof(release, [REPORT])
        releases.append(release)
    (tmp_path / "slots" / "half.part").mkdir()
    slots.collect({releases[1]})
    assert sorted(p.name for p in (tmp_path / "slots").iterdir()) == [releases[1], f"{releases[1]}.proof"]


def test_a_proof_is_remembered(slots):
    assert slots.proof("r") == []
    slots.save_proof("r", [REPORT])
    assert slots.proof("r") == [REPORT]


# The record


def test_the_newest_record_counts(tmp_path):
    records = Records(tmp_path, Disk())
    assert records.record == Record()
    for number in range(1, 6):
        records.save(Record(attempt=number))
        assert Records(tmp_path, Disk()).record.attempt == number


@pytest.mark.parametrize(
    "damage", [lambda _raw: b"", lambda raw: raw[:30], lambda raw: raw[:-5] + b"xxxxx", lambda raw: bytes(len(raw))]
)
def test_a_torn_record_gives_way_to_the_one_before(tmp_path, damage):
    records = Records(tmp_path, Disk())
    records.save(Record(state=State.FETCHING, target="a"))
    records.save(Record(state=State.PROVING, target="a", attempt=1))
    newest = tmp_path / "record.b"
    newest.write_bytes(damage(newest.read_bytes()))
    again = Records(tmp_path, Disk())
    assert again.record.state is State.FETCHING
    again.save(Record(active=Chosen("a", "fp32")))
    assert Records(tmp_path, Disk()).record.active == Chosen("a", "fp32")


def test_a_record_of_another_version_is_refused_and_left_alone(tmp_path):
    records = Records(tmp_path, Disk())
    records.save(Record())
    body = b'{"generation":9,"record":{"state":"dreaming"}}'
    raw = b"%08x %s\n" % (google_crc32c.value(body), body)
    (tmp_path / "record.b").write_bytes(raw)
    with pytest.raises(FormatError, match="another version of Skerry"):
        Records(tmp_path, Disk())
    assert (tmp_path / "record.b").read_bytes() == raw


# Handing in


def test_a_bundle_that_is_handed_in_is_verified_kept_and_wished_for(tmp_path):
    path, release = tiny.Tiny().pack(tmp_path)
    paths = Paths(tmp_path / "data")
    hand_in(path, paths, Disk(), tiny.trusted(), again=False)
    assert current_wish(paths).apps["main"].release == release
    with Inbox(paths.inbox, Disk()).open(release) as source:
        assert source.read() == path.read_bytes()


def test_a_folder_may_be_handed_in_as_well(tmp_path):
    release = tiny.Tiny().write(tmp_path / "bundle")
    paths = Paths(tmp_path / "data")
    hand_in(tmp_path / "bundle", paths, Disk(), tiny.trusted(), again=False)
    assert current_wish(paths).apps["main"].release == release


def test_a_bundle_that_must_not_be_used_changes_nothing(tmp_path):
    good, release = tiny.Tiny().pack(tmp_path)
    bad, _ = tiny.Tiny(version=2, key=tiny.OTHER_KEY).pack(tmp_path)
    paths = Paths(tmp_path / "data")
    hand_in(good, paths, Disk(), tiny.trusted(), again=False)
    with pytest.raises(KeyNotTrusted):
        hand_in(bad, paths, Disk(), tiny.trusted(), again=False)
    assert current_wish(paths).apps["main"].release == release
    assert [p.name for p in paths.inbox.iterdir()] == [f"{release}.skb"]


def test_each_wish_is_newer_than_the_one_before(tmp_path):
    paths, versions = Paths(tmp_path / "data"), []
    for version in (1, 2, 3):
        hand_in(tiny.Tiny(version=version).pack(tmp_path)[0], paths, Disk(), tiny.trusted(), again=version == 3)
        versions.append((current_wish(paths).version, len(current_wish(paths).cleared)))
    assert versions == [(1, 0), (2, 0), (3, 1)]
