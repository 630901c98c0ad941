"""The ``.skb`` archive: one byte sequence per list of files, and no second way to spell one."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry import archive
from skerry.errors import ArchiveError, BundleError, LinkRefused, TooLarge, UnsafePath

BLOCK = 512
MODE, UID, GID, SIZE, MTIME, CHECKSUM, KIND = (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (148, 8), (156, 1)
LINK, OWNER, PREFIX, REST = (157, 100), (265, 32), (345, 155), (500, 12)

UNSAFE = [
    "",
    ".",
    "..",
    "../evil",
    "a/../../b",
    "a/..",
    "/etc/passwd",
    "a//b",
    "a/",
    "./a",
    "a/./b",
    "a\\b",
    "..\\evil",
    "C:evil",
    "a b",
    "a\nb",
    "a\0b",
    "ä",
    "~root",
    "a" * 101,
]

letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
parts = st.text(letters, min_size=1, max_size=20).filter(lambda part: part not in (".", ".."))
names = st.lists(parts, min_size=1, max_size=6).map("/".join).filter(lambda name: len(name) <= 100)
contents = st.one_of(st.binary(max_size=40), st.integers(0, 3 * BLOCK).map(lambda size: b"\xa5" * size))
trees = st.dictionaries(names, contents, max_size=8)


def packed(files):
    """An archive of ``files``, bytes by name, in the one order."""
    return b"".join(archive.write((name, len(files[name]), [files[name]]) for name in archive.order(files)))


def unpacked(raw):
    return {member.name: b"".join(member.chunks()) for member in archive.read(io.BytesIO(raw))}


def header_with(name, size, field, value):
    """The canonical header with one field overwritten and the checksum made right again."""
    offset, width = field
    block = bytearray(archive.header(name, size))
    block[offset : offset + width] = value.ljust(width, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


class Dribble:
    """A source that gives at most seven bytes at a time, as a slow socket may."""

    def __init__(self, raw):
        self._source = io.BytesIO(raw)

    def read(self, size):
        return self._source.read(min(size, 7))


# --- laws ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(trees)
def test_what_is_packed_comes_back(files):
    assert unpacked(packed(files)) == files


@settings(deadline=None)
@given(trees, st.randoms(use_true_random=False))
def test_the_order_in_which_files_are_found_does_not_matter(files, random):
    shuffled = list(files)
    random.shuffle(shuffled)

    assert packed({name: files[name] for name in shuffled}) == packed(files)


@settings(deadline=None)
@given(trees)
def test_an_archive_is_whole_blocks_and_ends_with_two_empty_ones(files):
    raw = packed(files)

    assert len(raw) == BLOCK * (2 + sum(1 + -(-len(content) // BLOCK) for content in files.values()))
    assert raw[-2 * BLOCK :] == bytes(2 * BLOCK)


@settings(deadline=None)
@given(st.text(max_size=120) | names)
def test_a_header_holds_exactly_the_names_that_are_plain(name):
    try:
        plain = archive.plain_path(name)
    except UnsafePath:
        with pytest.raises(UnsafePath):
            archive.header(name, 0)
    else:
        assert archive.header(plain, 0)[:100].rstrip(b"\0").decode("ascii") == name


@settings(deadline=None)
@given(trees, st.data())
def test_whatever_opens_is_what_we_would_have_written(files, data):
    """Any bytes: a piece of an archive is cut out and something else put in its place."""
    raw = packed(files)
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, len(raw)))
    spliced = raw[:start] + data.draw(st.binary(max_size=BLOCK) | trees.map(packed)) + raw[end:]

    try:
        found = unpacked(spliced)
    except BundleError:
        return
    assert packed(found) == spliced


@settings(deadline=None)
@given(trees.filter(bool), st.data())
def test_no_byte_of_an_archive_can_change_unnoticed(files, data):
    """The digests see to the contents; all else is the archive's own business."""
    raw = bytearray(packed(files))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))

    try:
        found = unpacked(bytes(raw))
    except BundleError:
        return
    assert list(found) == archive.order(files)
    assert sum(found[name] != files[name] for name in files) == 1


def test_bundle_json_and_its_signature_come_first():
    assert archive.order(["a", "bundle.sig", "Z", "bundle.json", "proof/f"]) == [
        "bundle.json",
        "bundle.sig",
        "Z",
        "a",
        "proof/f",
    ]


def test_a_source_may_give_its_bytes_in_dribs():
    files = {"bundle.json": b"{}", "weights": bytes(range(256)) * 5}

    found = {member.name: b"".join(member.chunks()) for member in archive.read(Dribble(packed(files)))}

    assert found == files


def test_a_reader_may_skip_a_member():
    files = {"a": b"x" * 700, "b": b"y"}

    assert [member.name for member in archive.read(io.BytesIO(packed(files)))] == ["a", "b"]


# --- others can open it --------------------------------------------------------------------------------------------


def test_python_s_tarfile_opens_it_and_finds_nothing_but_names_and_sizes():
    files = {"bundle.json": b"{}", "a/b/c": b"x" * 513, "empty": b""}

    with tarfile.open(fileobj=io.BytesIO(packed(files))) as tar:
        members = tar.getmembers()
        assert {m.name: tar.extractfile(m).read() for m in members} == files
        assert all(m.isreg() and m.mode == 0o644 for m in members)
        assert {(m.uid, m.gid, m.mtime, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
def test_tar_lists_it(tmp_path):
    path = tmp_path / "some.skb"
    path.write_bytes(packed({"bundle.json": b"{}", "a/b/c": b"x" * 513, "e": b""}))

    listing = subprocess.run(["tar", "-tf", path], check=True, capture_output=True, text=True)

    assert listing.stdout.split() == ["bundle.json", "a/b/c", "e"]
    assert listing.stderr == ""


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_is_not_plain_is_refused_by_name(name):
    with pytest.raises(UnsafePath) as refused:
        archive.plain_path(name)

    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", ["bundle.json", ".gitignore", "...", "a/..b/c..", "-rf", "A/a", "a" * 100])
def test_a_plain_name_is_taken_as_it_is(name):
    assert archive.plain_path(name) == name


@pytest.mark.parametrize("name", [name for name in UNSAFE if len(name) <= 100 and "\0" not in name])
def test_an_archive_cannot_smuggle_in_a_name_that_is_not_plain(name):
    member = tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)

    with pytest.raises(UnsafePath):
        unpacked(member + bytes(2 * BLOCK))


def test_a_name_that_is_not_utf_8_is_refused():
    with pytest.raises(UnsafePath):
        unpacked(header_with("a", 0, (0, 100), b"a\xff\xfeb") + bytes(2 * BLOCK))


def test_a_name_behind_a_zero_byte_is_refused():
    with pytest.raises(UnsafePath):
        unpacked(header_with("a", 0, (0, 100), b"a\0../evil") + bytes(2 * BLOCK))


def test_a_name_cannot_hide_in_the_prefix_field():
    with pytest.raises(ArchiveError, match="header of evil is not canonical"):
        unpacked(header_with("evil", 0, PREFIX, b"..") + bytes(2 * BLOCK))


# --- kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.FIFOTYPE, "a pipe"),
    ],
)
def test_what_is_not_a_plain_file_is_refused_by_name_and_kind(kind, words):
    member = tarfile.TarInfo("proof/odd")
    member.type, member.linkname = kind, "bundle.json"

    with pytest.raises(LinkRefused, match=f"proof/odd.* is {words}"):
        unpacked(member.tobuf(tarfile.USTAR_FORMAT) + bytes(2 * BLOCK))


@pytest.mark.parametrize("kind", [b"\0", b"7", b"A", b"D", b"K", b"L", b"M", b"S", b"V", b"X", b"g", b"x"])
def test_tar_s_extensions_and_old_spellings_are_refused(kind):
    with pytest.raises(ArchiveError, match="header of odd is not canonical"):
        unpacked(header_with("odd", 0, KIND, kind) + bytes(2 * BLOCK))


# --- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (MODE, b"0000755"),
        (UID, b"0001750"),
        (GID, b"0001750"),
        (MTIME, b"14735600000"),
        (LINK, b"elsewhere"),
        (OWNER, b"root"),
        (REST, b"hidden"),
        (SIZE, b"3 "),
        (SIZE, b"          3"),
        (SIZE, b"0000000003 "),
        (SIZE, b"0000000_003"),
        (SIZE, b"-0000000003"),
        (SIZE, b"0o000000003"),
        (SIZE, b"99999999999"),
        (SIZE, b"\x80" + bytes(10) + b"\3"),
        (SIZE, b""),
    ],
)
def test_a_header_that_says_the_same_in_other_words_is_refused(field, value):
    with pytest.raises(ArchiveError, match="odd"):
        unpacked(header_with("odd", 3, field, value) + b"abc".ljust(BLOCK, b"\0") + bytes(2 * BLOCK))


@pytest.mark.parametrize("checksum", [b"000000\0 ", b"        ", b"0000000\0"])
def test_a_header_with_another_checksum_is_refused(checksum):
    block = bytearray(archive.header("odd", 0))
    block[148:156] = checksum

    with pytest.raises(ArchiveError, match="header of odd is not canonical"):
        unpacked(bytes(block) + bytes(2 * BLOCK))


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_a_file_of_eight_gigabytes_has_no_header():
    assert archive.header("big", 8**11 - 1)
    with pytest.raises(TooLarge, match=r"big: 8589934592 bytes"):
        archive.header("big", 8**11)


def test_a_claim_of_eight_gigabytes_is_refused_before_a_byte_is_read():
    source = io.BytesIO(archive.header("bundle.json", 8**11 - 1) + bytes(BLOCK))
    member = next(archive.read(source))

    with pytest.raises(TooLarge, match=r"bundle\.json says that it is 8589934591 bytes"):
        member.read(limit=1 << 20)
    assert source.tell() == BLOCK


def test_a_claim_that_the_archive_does_not_keep_is_refused():
    with pytest.raises(ArchiveError, match="ends inside weights: 8589934079 bytes are missing"):
        unpacked(archive.header("weights", 8**11 - 1) + bytes(BLOCK))


@pytest.mark.parametrize("size", [3, 5])
def test_a_file_that_changes_while_it_is_packed_is_refused(size):
    with pytest.raises(ArchiveError, match=f"weights changed while it was packed: expected {size} bytes, read 4"):
        list(archive.write([("weights", size, [b"ab", b"cd"])]))


# --- the whole -----------------------------------------------------------------------------------------------------


def test_an_archive_cut_off_anywhere_is_refused():
    raw = packed({"bundle.json": b"{}", "weights": b"x" * 600})

    for length in range(len(raw)):
        with pytest.raises(ArchiveError):
            unpacked(raw[:length])


@pytest.mark.parametrize("more", [b"\0", b"x", bytes(BLOCK), packed({"evil": b""})])
def test_bytes_after_the_end_are_refused(more):
    with pytest.raises(ArchiveError, match="bytes after the archive's end"):
        unpacked(packed({"a": b"1"}) + more)


def test_bytes_between_the_two_empty_blocks_are_refused():
    with pytest.raises(ArchiveError, match="bytes after the archive's end"):
        unpacked(packed({"a": b"1"})[:-BLOCK] + packed({"evil": b""}))


def test_padding_that_says_something_is_refused():
    raw = bytearray(packed({"a": b"1"}))
    raw[2 * BLOCK - 1] = 1

    with pytest.raises(ArchiveError, match="padding after a is not zero"):
        unpacked(bytes(raw))


@pytest.mark.parametrize(
    "order",
    [
        ["b", "a"],
        ["a", "bundle.json"],
        ["bundle.sig", "bundle.json"],
        ["a", "a"],
        ["bundle.json", "a", "bundle.json"],
        ["a/b", "a.b"],
    ],
)
def test_files_out_of_order_or_twice_are_refused(order):
    raw = b"".join(archive.header(name, 0) for name in order) + bytes(2 * BLOCK)

    with pytest.raises(ArchiveError, match=f"{order[-1]} is out of order or twice"):
        unpacked(raw)
