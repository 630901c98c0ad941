"""Bundles: nothing is used before its signature and its digest, and every fault has a name."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile

import msgspec
import numpy as np
import pytest
import tiny
from onnx import numpy_helper

from edge_agent.slots import Slots
from skerry import archive, bundle, signing
from skerry.disk import Disk
from skerry.errors import (
    ArchiveError,
    BadSignature,
    DigestMismatch,
    ExtraFile,
    FormatError,
    KeyNotTrusted,
    LinkRefused,
    MissingFile,
    NotSigned,
    SkerryError,
    StorageError,
    TooLarge,
    UnsafePath,
    UsageError,
)
from skerry.manifest import MAX_BYTES, Manifest, release_id

BLOCK = 512
FRAMES, ANSWERS, EVIDENCE = "proof/frames.safetensors", "proof/answers.json", "evidence/compile.json"
WEIGHTS, OTHER_WEIGHTS = "variants/fp32/weights.bin", "variants/int8/weights.bin"
CLIMBING = ["../evil", "/evil", "a/../../b", "..\\evil"]


def int8():
    """The tiny net with other weights: as many bytes, another digest."""
    net = tiny.model()
    net.graph.initializer[0].CopyFrom(numpy_helper.from_array(tiny.weights() * np.float32(0.5), "table"))
    return net


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A release with two variants, as the compiler leaves it: a signed directory."""
    root = tmp_path_factory.mktemp("made") / "tiny"
    tiny.Tiny(variants={"fp32": tiny.model(), "int8": int8()}, frames=2).write(root)
    return root


@pytest.fixture(scope="module")
def packed(made):
    """The same as one file."""
    path = made.with_name("tiny.skb")
    bundle.pack(made, path, Disk())
    return path


@pytest.fixture
def root(made, tmp_path):
    """A copy of the directory, to plant faults in."""
    return shutil.copytree(made, tmp_path / "tiny")


def open_folder(root, choose=bundle.every_variant):
    return bundle.open_directory(root, tiny.trusted(), choose)


def open_stream(raw, choose=bundle.every_variant):
    return bundle.unpack(io.BytesIO(raw), tiny.trusted(), lambda _name, chunks: list(chunks), choose)


def only(variant_id):
    """A device that wants one variant."""
    return lambda manifest: [manifest.variant(variant_id)]


def tree(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def skb(files, order=None):
    """An archive of ``files``, bytes by name, in any order one likes."""
    names = archive.order(files) if order is None else order
    return b"".join(archive.write((name, len(files[name]), [files[name]]) for name in names))


def swap(root, one, other):
    (root / one).rename(root / "aside")
    (root / other).rename(root / one)
    (root / "aside").rename(root / other)


def grow(path, size):
    """Makes a file as large as it likes to be, on paper."""
    with path.open("r+b") as file:
        file.truncate(size)


def resign(root, digests, key=tiny.KEY):
    (root / "bundle.sig").write_bytes(signing.sign("tiny", digests, key))


def digests(root):
    return {path: tiny.digest(root / path) for path in tree(root) if path != "bundle.sig"}


def rewrite(root, raw):
    """Puts another bundle.json into the directory and signs it: the signer's own fault."""
    (root / "bundle.json").write_bytes(raw)
    tiny.sign(root)


# --- a good one ----------------------------------------------------------------------------------------------------


def test_a_directory_and_its_archive_are_the_same_bundle(made, packed):
    opened = bundle.open_bundle(made, tiny.trusted())

    assert bundle.open_bundle(packed, tiny.trusted()) == opened
    assert opened.release == release_id((made / "bundle.json").read_bytes())
    assert opened.signer == signing.fingerprint(tiny.KEY.public_key())
    assert str(opened) == f"tiny@1 ({opened.release[:12]})"
    assert (
        bundle.read_manifest(packed)
        == bundle.read_manifest(made)
        == (made.joinpath("bundle.json").read_bytes(), opened.release)
    )


def test_packing_twice_gives_the_same_bytes(made, packed, tmp_path):
    bundle.pack(made, tmp_path / "again.skb", Disk())

    assert (tmp_path / "again.skb").read_bytes() == packed.read_bytes()


def test_packing_asks_nothing_of_a_file_but_its_name_and_its_bytes(made, packed, tmp_path):
    copy = tmp_path / "copy"
    for name in sorted(tree(made), reverse=True):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((made / name).read_bytes())
        (copy / name).chmod(0o700)
        os.utime(copy / name, (1, 1))

    bundle.pack(copy, tmp_path / "copy.skb", Disk())

    assert (tmp_path / "copy.skb").read_bytes() == packed.read_bytes()


def test_building_and_signing_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        tiny.Tiny(frames=2).write(tmp_path / name / "tiny")

    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_what_is_unpacked_is_the_directory_that_was_packed(made, packed, tmp_path):
    out = tmp_path / "out"

    def keep(name, chunks):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"".join(chunks))

    with packed.open("rb") as source:
        bundle.unpack(source, tiny.trusted(), keep)

    assert tree(out) == tree(made)
    assert open_folder(out) == open_folder(made)


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
def test_tar_and_python_s_tarfile_open_an_archive(made, packed):
    listing = subprocess.run(["tar", "-tf", packed], check=True, capture_output=True, text=True).stdout.split()

    assert listing[:2] == ["bundle.json", "bundle.sig"]
    assert set(listing) == set(tree(made))
    with tarfile.open(packed) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == tree(made)


def test_fields_of_a_later_version_are_kept_as_bytes_and_do_not_disturb(root):
    known = open_folder(root).manifest
    raw = msgspec.json.encode(msgspec.json.decode((root / "bundle.json").read_bytes()) | {"later": {"tiles": [4, 4]}})
    rewrite(root, raw)
    kept = {}

    opened = bundle.unpack(
        io.BytesIO(skb(tree(root))), tiny.trusted(), lambda name, chunks: kept.update({name: b"".join(chunks)})
    )

    assert kept["bundle.json"] == raw
    assert opened.release == release_id(raw)
    assert opened.manifest == known


# --- variants ------------------------------------------------------------------------------------------------------


def test_the_files_of_variants_that_were_not_chosen_may_be_missing(root):
    shutil.rmtree(root / "variants" / "fp32")

    assert open_folder(root, only("int8")).manifest.name == "tiny"
    with pytest.raises(MissingFile, match=r"variants/fp32/model\.onnx was signed but is not there"):
        open_folder(root)


def test_an_archive_may_leave_out_variants_that_are_not_chosen(made):
    files = {name: content for name, content in tree(made).items() if not name.startswith("variants/fp32/")}

    assert open_stream(skb(files), only("int8")).manifest.name == "tiny"
    with pytest.raises(MissingFile, match=r"variants/fp32/model\.onnx was signed but is not in the bundle"):
        open_stream(skb(files))


@pytest.mark.parametrize("missing", [FRAMES, EVIDENCE, WEIGHTS])
def test_all_else_must_be_there_whatever_is_chosen(root, missing):
    (root / missing).unlink()

    with pytest.raises(MissingFile, match=missing):
        open_folder(root, only("fp32"))
    with pytest.raises(MissingFile, match=missing):
        open_stream(skb(tree(root)), only("fp32"))


def test_a_file_that_was_not_chosen_is_not_kept(made):
    kept = {}

    bundle.unpack(
        io.BytesIO(skb(tree(made))),
        tiny.trusted(),
        lambda name, chunks: kept.update({name: b"".join(chunks)}),
        only("fp32"),
    )

    assert kept == {name: content for name, content in tree(made).items() if not name.startswith("variants/int8/")}


def test_a_file_that_was_not_chosen_is_checked_all_the_same(root):
    (root / OTHER_WEIGHTS).write_bytes(bytes(len((root / OTHER_WEIGHTS).read_bytes())))

    with pytest.raises(DigestMismatch, match=OTHER_WEIGHTS):
        open_folder(root, only("fp32"))
    with pytest.raises(DigestMismatch, match=OTHER_WEIGHTS):
        open_stream(skb(tree(root)), only("fp32"))


def test_an_extra_file_is_never_legal_whatever_is_chosen(root):
    (root / "variants" / "int8" / "more.bin").write_bytes(b"")

    with pytest.raises(ExtraFile, match=r"variants/int8/more\.bin"):
        open_folder(root, only("fp32"))
    with pytest.raises(ExtraFile, match=r"variants/int8/more\.bin"):
        open_stream(skb(tree(root)), only("fp32"))


# --- faults that both a directory and an archive can have -----------------------------------------------------------


def swapped(root):
    swap(root, WEIGHTS, OTHER_WEIGHTS)


def missing(root):
    (root / FRAMES).unlink()


def extra(root):
    (root / "proof" / "more.json").write_bytes(b"{}")


def extra_hidden(root):
    (root / ".gitignore").write_bytes(b"*")


def changed(root):
    (root / EVIDENCE).write_bytes(b"[]")


def changed_manifest(root):
    raw = (root / "bundle.json").read_bytes()
    (root / "bundle.json").write_bytes(raw.replace(b'"red"', b'"tan"'))


def longer(root):
    with (root / WEIGHTS).open("ab") as file:
        file.write(b"\0")


def shorter(root):
    grow(root / WEIGHTS, 100)


def unsigned(root):
    (root / "bundle.sig").unlink()


def garbled_signature(root):
    (root / "bundle.sig").write_bytes(b"signed, sealed, delivered")


def signed_by_another(root):
    tiny.sign(root, tiny.OTHER_KEY)


def signed_in_another_s_name(root):
    tiny.sign(root, tiny.OTHER_KEY)
    theirs, ours = (signing.fingerprint(key.public_key()).encode() for key in (tiny.OTHER_KEY, tiny.KEY))
    (root / "bundle.sig").write_bytes((root / "bundle.sig").read_bytes().replace(theirs, ours))


def signature_of_another_bundle(root):
    other = root.with_name("other")
    tiny.Tiny(variants={"fp32": tiny.model(), "int8": int8()}, frames=2, version=2).write(other)
    shutil.copy(other / "bundle.sig", root / "bundle.sig")


def signature_over_another_manifest(root):
    resign(root, digests(root) | {"bundle.json": "0" * 64})


def signature_without_the_manifest(root):
    resign(root, {name: digest for name, digest in digests(root).items() if name != "bundle.json"})


def signature_without_a_file(root):
    resign(root, {name: digest for name, digest in digests(root).items() if name != FRAMES})


def signature_over_another_file(root):
    resign(root, digests(root) | {FRAMES: "0" * 64})


def garbled_manifest(root):
    rewrite(root, b"{")


def deep_manifest(root):
    rewrite(root, b'{"format":"skerry.bundle/1.0","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def deep_signature(root):
    nested = b"[" * 100_000 + b"]" * 100_000
    (root / "bundle.sig").write_bytes(b'{"verificationMaterial":{"deep":' + nested + b"}}")


def manifest_of_the_future(root):
    rewrite(root, (root / "bundle.json").read_bytes().replace(b"skerry.bundle/1.0", b"skerry.bundle/2.0"))


def large_manifest(root):
    grow(root / "bundle.json", MAX_BYTES + 1)


def large_signature(root):
    grow(root / "bundle.sig", bundle.MAX_SIGNATURE_BYTES + 1)


def large_evidence(root):
    grow(root / EVIDENCE, bundle.MAX_EVIDENCE_BYTES + 1)


FAULTS = [
    (swapped, DigestMismatch, WEIGHTS),
    (missing, MissingFile, FRAMES),
    (extra, ExtraFile, "proof/more.json"),
    (extra_hidden, ExtraFile, ".gitignore"),
    (changed, DigestMismatch, EVIDENCE),
    (changed_manifest, DigestMismatch, "bundle.json"),
    (longer, TooLarge, WEIGHTS),
    (shorter, DigestMismatch, WEIGHTS),
    (unsigned, NotSigned, "bundle.sig"),
    (garbled_signature, FormatError, "signature"),
    (signed_by_another, KeyNotTrusted, signing.fingerprint(tiny.OTHER_KEY.public_key())[:16]),
    (signed_in_another_s_name, BadSignature, "signature"),
    (signature_of_another_bundle, DigestMismatch, "bundle.json"),
    (signature_over_another_manifest, DigestMismatch, "bundle.json"),
    (signature_without_the_manifest, MissingFile, "bundle.json"),
    (signature_without_a_file, MissingFile, FRAMES),
    (signature_over_another_file, DigestMismatch, FRAMES),
    (garbled_manifest, FormatError, "bundle.json"),
    (deep_manifest, FormatError, "bundle.json"),
    (deep_signature, FormatError, "ignature"),
    (manifest_of_the_future, FormatError, "bundle.json"),
    (large_manifest, TooLarge, "bundle.json"),
    (large_signature, TooLarge, "bundle.sig"),
    (large_evidence, TooLarge, EVIDENCE),
]

every_fault = pytest.mark.parametrize(
    ("plant", "error", "named"), FAULTS, ids=[plant.__name__ for plant, _, _ in FAULTS]
)


@every_fault
def test_a_faulty_directory_is_refused_by_its_own_class_and_names_the_file(root, plant, error, named):
    plant(root)

    with pytest.raises(SkerryError) as refused:
        open_folder(root)

    assert type(refused.value) is error
    assert named in str(refused.value)


@every_fault
def test_a_faulty_archive_is_refused_by_its_own_class_and_names_the_file(root, plant, error, named):
    plant(root)
    bundle.pack(root, root.with_name("faulty.skb"), Disk())

    with pytest.raises(SkerryError) as refused:
        bundle.open_bundle(root.with_name("faulty.skb"), tiny.trusted())

    assert type(refused.value) is error
    assert named in str(refused.value)


@pytest.mark.parametrize("path", CLIMBING)
def test_a_path_in_the_manifest_that_climbs_out_is_refused_though_it_is_signed(tmp_path, path):
    def climb(fields):
        return fields | {"files": [msgspec.structs.replace(fields["files"][0], path=path), *fields["files"][1:]]}

    root = tmp_path / "tiny"
    tiny.Tiny(frames=2, bend=climb).write(root)

    for opened in (lambda: open_folder(root), lambda: open_stream(skb(tree(root)))):
        with pytest.raises(UnsafePath) as refused:
            opened()
        assert repr(path) in str(refused.value)


def test_a_path_in_the_signature_that_climbs_out_is_refused(root):
    (root.parent / "evil").write_bytes(b"outside")
    resign(root, digests(root) | {"../evil": tiny.digest(root.parent / "evil")})

    with pytest.raises(UnsafePath, match=r"\.\./evil"):
        open_folder(root)
    with pytest.raises(UnsafePath, match=r"\.\./evil"):
        open_stream(skb(tree(root)))


# --- faults of a directory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bundle.json", "bundle.sig", WEIGHTS])
def test_a_link_is_refused_even_to_the_right_bytes(root, name):
    (root / name).rename(root.with_name("content"))
    (root / name).symlink_to(root.with_name("content"))

    with pytest.raises(LinkRefused, match=f"{name}' is a link"):
        open_folder(root)


@pytest.mark.parametrize("name", ["bundle.json", "bundle.sig"])
def test_a_link_is_refused_before_it_is_followed(root, name):
    root.with_name("content").write_bytes(b"of another kind")
    (root / name).unlink()
    (root / name).symlink_to(root.with_name("content"))

    with pytest.raises(LinkRefused, match=f"{name}' is a link"):
        open_folder(root)


def test_a_linked_folder_is_refused(root):
    (root / "variants").rename(root.with_name("elsewhere"))
    (root / "variants").symlink_to(root.with_name("elsewhere"))

    with pytest.raises(LinkRefused, match="variants' is a link"):
        open_folder(root)


def test_a_link_to_nowhere_is_refused(root):
    (root / "proof" / "more").symlink_to("nowhere")

    with pytest.raises(LinkRefused, match="proof/more"):
        open_folder(root)


def test_a_pipe_is_refused_and_not_waited_for(root):
    os.mkfifo(root / "proof" / "pipe")

    with pytest.raises(LinkRefused, match="proof/pipe"):
        open_folder(root)


def test_a_file_of_eight_gigabytes_is_refused_unread(root):
    grow(root / OTHER_WEIGHTS, 8 << 30)

    with pytest.raises(TooLarge, match=OTHER_WEIGHTS):
        open_folder(root)


def test_an_empty_folder_is_no_bundle(tmp_path):
    with pytest.raises(MissingFile, match=r"bundle\.json"):
        open_folder(tmp_path)


def test_what_has_a_link_in_it_is_not_packed_and_leaves_nothing(root):
    (root / "proof" / "more").symlink_to("answers.json")

    with pytest.raises(LinkRefused, match="proof/more"):
        bundle.pack(root, root.with_name("out.skb"), Disk())
    assert [path.name for path in root.parent.iterdir()] == ["tiny"]


def test_a_name_that_is_not_plain_is_not_packed_and_leaves_nothing(root):
    (root / "proof" / "two words").write_bytes(b"")

    with pytest.raises(UnsafePath, match="two words"):
        bundle.pack(root, root.with_name("out.skb"), Disk())
    assert [path.name for path in root.parent.iterdir()] == ["tiny"]


def test_a_release_that_cannot_be_written_keeps_the_one_that_is_there(root):
    out = root.with_name("out.skb")
    bundle.pack(root, out, Disk())
    before = out.read_bytes()
    (root / "proof" / "two words").write_bytes(b"")

    with pytest.raises(UnsafePath):
        bundle.pack(root, out, Disk())
    assert out.read_bytes() == before


def test_packing_into_a_folder_that_is_not_there_is_an_error_of_storage(made, tmp_path):
    with pytest.raises(StorageError, match=r"no/out\.skb"):
        bundle.pack(made, tmp_path / "no" / "out.skb", Disk())


# --- faults of an archive ------------------------------------------------------------------------------------------


def ending_with(files, member, content=b""):
    """The archive of ``files`` with one more member, made by another tool."""
    return skb(files)[: -2 * BLOCK] + member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(2 * BLOCK)


@pytest.mark.parametrize("path", [*CLIMBING, "variants/../../evil", "./zz", "zz//zz"])
def test_a_member_that_climbs_out_is_refused_by_name(made, path):
    with pytest.raises(UnsafePath) as refused:
        open_stream(ending_with(tree(made), tarfile.TarInfo(path)))

    assert repr(path) in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.DIRTYPE, "a folder"),
    ],
)
@pytest.mark.parametrize("name", [WEIGHTS, "zz"])
def test_a_member_that_is_no_plain_file_is_refused(made, name, kind, words):
    """Whether it takes a signed file's place or comes along."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    files = {path: content for path, content in tree(made).items() if path < name or path in archive.FIRST}

    with pytest.raises(LinkRefused, match=f"{name}.* is {words}"):
        open_stream(ending_with(files, member))


@pytest.mark.parametrize(
    ("name", "size", "error"),
    [
        (EVIDENCE, 8**11 - 1, TooLarge),
        (EVIDENCE, bundle.MAX_EVIDENCE_BYTES + 1, TooLarge),
        ("proof/bomb", 8**11 - 1, ExtraFile),
    ],
)
def test_a_member_that_claims_too_much_is_refused_before_it_is_read(made, name, size, error):
    start = skb({path: content for path, content in tree(made).items() if path in archive.FIRST})[: -2 * BLOCK]
    source = io.BytesIO(start + archive.header(name, size) + bytes(1 << 20))

    with pytest.raises(error, match=name):
        bundle.unpack(source, tiny.trusted(), lambda _name, chunks: list(chunks))
    assert source.tell() == len(start) + BLOCK


@pytest.mark.parametrize(("name", "limit"), [("bundle.json", MAX_BYTES), ("bundle.sig", bundle.MAX_SIGNATURE_BYTES)])
@pytest.mark.parametrize("size", ["limit", "gigabytes"])
def test_a_document_that_claims_too_much_is_refused_before_it_is_read(made, name, limit, size):
    start = b"" if name == "bundle.json" else skb({"bundle.json": (made / "bundle.json").read_bytes()})[: -2 * BLOCK]
    claim = limit + 1 if size == "limit" else 8**11 - 1
    source = io.BytesIO(start + archive.header(name, claim) + bytes(1 << 20))

    with pytest.raises(TooLarge, match=name):
        bundle.unpack(source, tiny.trusted(), lambda _name, chunks: list(chunks))
    assert source.tell() == len(start) + BLOCK


def test_a_member_of_its_size_that_never_ends_is_refused(made):
    raw = skb(tree(made))
    cut = raw.index((made / WEIGHTS).read_bytes()) + 100

    with pytest.raises(ArchiveError, match=f"ends inside {WEIGHTS}"):
        open_stream(raw[:cut])


@pytest.mark.parametrize(
    ("order", "named"),
    [
        (lambda names: [*names[:4], *names[3:]], ANSWERS),
        (lambda names: [*names, "bundle.json"], "bundle.json"),
        (lambda names: [*names[:-2], *reversed(names[-2:])], "variants/int8/model.onnx"),
    ],
    ids=["twice", "manifest-again", "out-of-order"],
)
def test_a_member_that_comes_twice_or_out_of_order_is_refused(made, order, named):
    files = tree(made)

    with pytest.raises(ArchiveError, match=f"{named} is out of order or twice"):
        open_stream(skb(files, order(archive.order(files))))


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (["bundle.sig", "bundle.json"], ArchiveError),
        (["bundle.json"], NotSigned),
        ([], ArchiveError),
    ],
)
def test_an_archive_that_does_not_begin_with_manifest_and_signature_is_refused(made, first, error):
    files = tree(made)
    rest = [name for name in archive.order(files) if name not in archive.FIRST]

    with pytest.raises(error, match=r"expected bundle\.(json|sig) next"):
        open_stream(skb(files, [*first, *rest]))


def test_an_empty_archive_is_refused():
    with pytest.raises(ArchiveError, match=r"expected bundle\.json next in the bundle, found nothing"):
        open_stream(skb({}))


@pytest.mark.parametrize("more", [b"\0", bytes(BLOCK), bytes(2 * BLOCK), b"x" * 10_240])
def test_bytes_after_the_end_are_refused(packed, more):
    with pytest.raises(ArchiveError, match="bytes after the archive's end"):
        open_stream(packed.read_bytes() + more)


def test_padding_that_says_something_is_refused(made, packed):
    raw = bytearray(packed.read_bytes())
    end_of_manifest = BLOCK + len((made / "bundle.json").read_bytes())
    assert raw[end_of_manifest] == 0
    raw[end_of_manifest] = 1

    with pytest.raises(ArchiveError, match=r"padding after bundle\.json is not zero"):
        open_stream(bytes(raw))


def test_nothing_is_kept_before_the_signature_held(root):
    kept = []
    tiny.sign(root, tiny.OTHER_KEY)

    with pytest.raises(KeyNotTrusted):
        bundle.unpack(io.BytesIO(skb(tree(root))), tiny.trusted(), lambda name, _chunks: kept.append(name))
    assert kept == []


def test_what_a_keeper_does_not_read_does_not_count(packed):
    with packed.open("rb") as source, pytest.raises(DigestMismatch, match=EVIDENCE):
        bundle.unpack(source, tiny.trusted(), lambda _name, _chunks: None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(600), b"\x1f\x8b" + bytes(600), bytes(100_000)])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "not.skb"
    path.write_bytes(content)

    with pytest.raises((ArchiveError, UnsafePath)):
        bundle.open_bundle(path, tiny.trusted())


def test_a_bundle_that_is_not_there_is_the_caller_s_error(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.skb"):
        bundle.open_bundle(tmp_path / "gone.skb", tiny.trusted())


# --- reading for show ----------------------------------------------------------------------------------------------


def test_a_file_is_read_from_either_form(made, packed):
    assert bundle.read_file(made, ANSWERS) == bundle.read_file(packed, ANSWERS) == (made / ANSWERS).read_bytes()


def test_a_file_that_is_not_in_it_is_missed_by_name(made, packed):
    for path in (made, packed):
        with pytest.raises(MissingFile, match="evidence/none"):
            bundle.read_file(path, "evidence/none")


def test_a_file_that_is_larger_than_one_wants_to_see_is_refused(made, packed):
    for path in (made, packed):
        with pytest.raises(TooLarge, match=FRAMES):
            bundle.read_file(path, FRAMES, limit=10)


def test_a_release_s_files_are_held_to_its_manifest_once_more(root):
    manifest = Manifest.parse((root / "bundle.json").read_bytes())
    bundle.check_files(root, manifest, {WEIGHTS, FRAMES})

    swap(root, WEIGHTS, OTHER_WEIGHTS)
    bundle.check_files(root, manifest, {FRAMES})
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        bundle.check_files(root, manifest, {WEIGHTS})

    (root / WEIGHTS).unlink()
    with pytest.raises(MissingFile, match=WEIGHTS):
        bundle.check_files(root, manifest, {WEIGHTS})


# --- a flipped byte anywhere ---------------------------------------------------------------------------------------


def regions(path):
    """Where an archive's parts lie: name and the range of its offsets."""
    with tarfile.open(path) as tar:
        for member in tar:
            end = member.offset_data + member.size
            yield f"header of {member.name}", range(member.offset, member.offset_data)
            yield member.name, range(member.offset_data, end)
            yield f"padding of {member.name}", range(end, end + -end % BLOCK)
    size = path.stat().st_size
    yield "trailer", range(size - 2 * BLOCK, size)


def flips(path, count):
    """Seeded flips: ``count`` over the whole file, and some in every part of it, so that none is spared by chance."""
    rng = random.Random(0x5EA)
    everywhere = [rng.randrange(path.stat().st_size) for _ in range(count)]
    by_part = [rng.choice(part) for _, part in regions(path) if part for _ in range(8)]
    return [(position, rng.randrange(1, 256)) for position in [*everywhere, *by_part]]


def flipped(raw, position, mask):
    return raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :]


def test_the_parts_of_an_archive_are_all_of_it(packed):
    covered = [offset for _, part in regions(packed) for offset in part]

    assert sorted(covered) == list(range(packed.stat().st_size))


def test_a_flipped_byte_anywhere_is_refused(packed, tmp_path):
    raw = packed.read_bytes()
    path = tmp_path / "flipped.skb"

    for position, mask in flips(packed, 1000):
        path.write_bytes(flipped(raw, position, mask))
        with pytest.raises(SkerryError):
            bundle.open_bundle(path, tiny.trusted())


def test_a_flipped_byte_anywhere_leaves_nothing_on_a_device(packed, tmp_path):
    raw = packed.read_bytes()
    release = release_id(bundle.read_file(packed, "bundle.json"))
    slots = Slots(tmp_path / "slots", Disk(), tiny.trusted())

    for position, mask in flips(packed, 100):
        with pytest.raises(SkerryError):
            slots.stage(release, io.BytesIO(flipped(raw, position, mask)), bundle.every_variant)
        assert list((tmp_path / "slots").iterdir()) == []

    slots.stage(release, io.BytesIO(raw), bundle.every_variant)
    assert slots.holds(release)


def test_an_archive_cut_off_anywhere_is_refused(packed):
    raw = packed.read_bytes()
    rng = random.Random(0x5EA)
    lengths = [*range(0, len(raw), BLOCK), *(rng.randrange(len(raw)) for _ in range(200))]

    for length in lengths:
        with pytest.raises(ArchiveError):
            open_stream(raw[:length])


def test_an_archive_cut_off_anywhere_leaves_nothing_on_a_device(packed, tmp_path):
    raw = packed.read_bytes()
    release = release_id(bundle.read_file(packed, "bundle.json"))
    slots = Slots(tmp_path / "slots", Disk(), tiny.trusted())

    for length in range(0, len(raw), BLOCK):
        with pytest.raises(ArchiveError):
            slots.stage(release, io.BytesIO(raw[:length]), bundle.every_variant)
        assert list((tmp_path / "slots").iterdir()) == []


def test_a_sound_bundle_that_is_not_the_one_asked_for_leaves_nothing_on_a_device(packed, tmp_path):
    slots = Slots(tmp_path / "slots", Disk(), tiny.trusted())

    with packed.open("rb") as source, pytest.raises(DigestMismatch, match="asked for release 000000000000, got tiny@1"):
        slots.stage("0" * 64, source, bundle.every_variant)
    assert list((tmp_path / "slots").iterdir()) == []
