"""Whatever is wrong, a stranger reads one clear line, and everything stays as it was."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pictures import write_broken
from shell import SKERRY, Shell, photograph, repository, save_weights
from tiny import OTHER_KEY, Tiny, write_keys

from skerry import signing
from skerry.disk import Disk
from skerry.main import main

Refused = Callable[..., str]

TARGET = ("--target", "x86-64")


def files_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def film(path: Path, frames: int = 50) -> Path:
    """A film whose colour changes every half second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.zeros((32, 32, 3), np.uint8)
            pixels[:, :, number // 12 % 3] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def damaged_film(path: Path) -> Path:
    """A film that opens and begins, and cannot be read to its end."""
    whole = bytearray(film(path, 200).read_bytes())
    for at in range(len(whole) // 3, len(whole) // 2):
        whole[at] = whole[at] * 7 + 13 & 0xFF
    path.write_bytes(whole)
    return path


# Compiling: what is found before anything runs


@dataclass(frozen=True)
class Desk:
    """A repository with everything in place; each test takes one thing away, or bends it."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "colours"

    def bend(self, before: str, after: str) -> None:
        recipe = self.root / "recipe.toml"
        text = recipe.read_text()
        assert before in text
        recipe.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photograph(tmp_path_factory.mktemp("calibration") / "photos", 140)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path / "desk")
    desk.folder.mkdir()
    repository("colours", desk.root)
    (desk.root / "w.pth").write_bytes(b"weights are not read by these tests")
    signing.make_key(Disk(), desk.folder / "key.pem")
    return desk


@pytest.fixture
def refused(desk: Desk, photos: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command on the desk, in this process; later options win. Returns the one line that it printed."""

    def run(*options: object, subject: object = None) -> str:
        key, out, work = desk.folder / "key.pem", desk.folder / "net.skb", desk.folder / "work"
        words = [subject or desk.root, *TARGET, "--key", key, "-o", out, "--work", work, *options]
        if "--calib" not in options:
            words += ["--calib", photos]
        before = files_below(desk.folder)

        code = main(["compile", *map(str, words)])

        said = capsys.readouterr()
        assert code in (1, 2)
        assert files_below(desk.folder) == before
        (line,) = said.err.splitlines()
        assert line.startswith("skerry compile: ")
        return line

    return run


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('color = "rgb"', 'colour = "rgb"', "unknown field `colour` - at `$.preprocess`"),
        ("top = 2", 'top = "two"', "Expected `int`, got `str` - at `$.postprocess.top`"),
        ("version = 1", "version = 1.5", "at `$.version`"),
        ("max_time_ratio = 4.0", "max_time_ratio = 9.0", "looser than any release may have"),
        ("max_time_ratio = 4.0", "min_agreement = 0.1", "looser than any release may have"),
        ("[input]", "[input", "is not TOML"),
        ('labels = "labels.txt"', 'labels = "names.txt"', "expected a text file, one label a line"),
        ('weights = "w.pth"', 'weights = "gone.pth"', "get it from the stranger's own shelf"),
    ],
)
def test_a_wrong_recipe(desk: Desk, refused: Refused, before: str, after: str, said: str) -> None:
    desk.bend(before, after)

    assert said in refused()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "toaster"), "unknown target 'toaster'; there are: native, "),
        (("--target", "mine.toml"), "unknown target 'mine.toml'"),
        (("--weights", "nowhere.pth"), "weights nowhere.pth are not there"),
        (("--labels", "nowhere.txt"), "cannot read the labels nowhere.txt"),
        (("--input", "224"), "expected 1xCxHxW"),
        (("--input", "2x3x32x32"), "expected 1xCxHxW"),
        (("--input", "1x3x32xwide"), "expected 1xCxHxW"),
        (("-o", "nowhere/net.skb"), "nowhere is not a folder"),
        (("--key", "nowhere.pem"), "nowhere.pem"),
        (("--calib", "nowhere"), "nowhere is not there; expected a folder of photos or videos"),
        (("--release", "0"), "version"),
        (("--name", "Not A Name"), "the release's name 'Not A Name': expected 1 to 64 of a-z 0-9 . _ -"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option(refused: Refused, options: tuple[str, ...], said: str) -> None:
    assert said in refused(*options)


def test_a_key_that_is_no_key(desk: Desk, refused: Refused) -> None:
    (desk.folder / "other.pem").write_text("-----BEGIN NOTHING-----")

    assert "other.pem" in refused("--key", desk.folder / "other.pem")


@pytest.mark.parametrize("subject", ["nowhere", "nowhere/net.py:build", "colours/net.py"])
def test_nothing_to_compile(desk: Desk, refused: Refused, subject: str) -> None:
    assert "expected a" in refused(subject=desk.folder / subject)


def test_labels_that_are_no_text(desk: Desk, refused: Refused) -> None:
    (desk.root / "labels.txt").write_bytes(b"\xff\xfe\x00\xd8")

    assert "labels.txt" in refused()


def test_no_calibration_data(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()

    assert "expected photos or videos of what the camera sees" in refused("--calib", tmp_path / "empty")


def test_too_little_calibration_data(tmp_path: Path, refused: Refused) -> None:
    line = refused("--calib", photograph(tmp_path / "few", 30))

    assert "calibration frames, at least 100 wanted" in line
    assert "add photos or a video" in line


def test_a_video_that_cannot_be_read(tmp_path: Path, refused: Refused, photos: Path) -> None:
    broken = tmp_path / "street.mp4"
    broken.write_bytes(film(tmp_path / "whole.mp4").read_bytes()[:700])

    assert "cannot open the video" in refused("--calib", photos, "--calib", broken)


def test_a_video_that_is_damaged_in_the_middle(tmp_path: Path, refused: Refused, photos: Path) -> None:
    assert "is damaged" in refused("--calib", photos, "--calib", damaged_film(tmp_path / "street.mp4"))


def test_a_folder_as_the_bundles_name(desk: Desk, refused: Refused) -> None:
    (desk.folder / "release").mkdir()

    assert "release" in refused("-o", desk.folder / "release")


# Compiling: what is found by running the stranger's code


_SAVE_FAULTY_WEIGHTS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
from net import Colours

net, out = Colours(), sys.argv[2]
state = net.state_dict()

class Payload:
    def __reduce__(self):
        return (os.system, (f"touch {out}/payload-ran",))

def save(name, value):
    torch.save(value, f"{out}/{name}.pth")

save("missing", {k: v for k, v in state.items() if k != "head.bias"})
save("unexpected", {**state, "neck.weight": torch.zeros(3)})
save("shape", {**state, "head.weight": torch.zeros(5, 32)})
save("payload", {**state, "head.bias": Payload()})
save("module", net)
save("list", [torch.zeros(3)])
save("nan", {**state, "head.bias": torch.full((4,), float("nan"))})
"""

_FAULTY_CODE = """
import os
import torch
from net import Colours, build
from torch import nn

number = 3

def raises():
    raise RuntimeError("no backbone today\\nand more about it")

def nothing():
    return None

def leaves():
    raise SystemExit(3)

def dies():
    os.kill(os.getpid(), 11)

class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x):
        return self.function(self.conv(x))

def bessel():
    return Odd(lambda x: torch.special.bessel_j0(x).mean((2, 3)) * 1000)

def two_outputs():
    return Odd(lambda x: (x.mean((2, 3)), x))

def half_precision():
    return Odd(lambda x: x.mean((2, 3)).half())

def broken_forward():
    return Odd(lambda x: x.no_such_thing)

def large():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4))
"""


@dataclass(frozen=True)
class Stranger:
    """A repository with faulty code in it, and faulty weights beside it."""

    shell: Shell
    folder: Path
    photos: Path

    def refusal(self, subject: str, *options: object, calib: Path | None = None) -> str:
        out, work = self.folder / "net.skb", self.folder / "work"
        out.unlink(missing_ok=True)
        words = [self.folder / subject, "--calib", calib or self.photos, *TARGET, "-o", out, "--work", work, *options]
        line = self.shell.skerry("compile", *words).refusal()
        assert line.startswith("skerry compile: ")
        assert [p.name for p in self.folder.glob("net.skb*")] == []
        return line


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Stranger:
    folder = tmp_path_factory.mktemp("stranger")
    shell, root = Shell(folder / "home"), repository("colours", folder / "colours")
    (root / "recipe.toml").write_text((root / "recipe.toml").read_text().replace('weights = "w.pth"', ""))
    (root / "faulty.py").write_text(_FAULTY_CODE)
    shell.python(_SAVE_FAULTY_WEIGHTS, root, folder)
    whole = save_weights(shell, root, folder / "whole.pth").read_bytes()
    (folder / "half.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pth").write_text("these are no weights\n" * 20)
    (folder / "empty.pth").touch()
    return Stranger(shell, folder, photos)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("missing", "missing.pth does not fit the model: missing head.bias"),
        ("unexpected", "unexpected.pth does not fit the model: unexpected neck.weight"),
        ("shape", "size mismatch for head.weight"),
        ("module", "module.pth holds more than tensors, and Skerry never unpickles code"),
        ("list", "list.pth holds a list; expected a state dict"),
        ("half", "half.pth is not a file of torch weights"),
        ("text", "text.pth is not a file of torch weights"),
        ("empty", "empty.pth is not a file of torch weights"),
    ],
)
def test_weights_that_do_not_fit(stranger: Stranger, weights: str, said: str) -> None:
    assert said in stranger.refusal("colours", "--weights", stranger.folder / f"{weights}.pth")


@pytest.mark.slow
def test_weights_that_would_run_code_are_refused_and_it_does_not_run(stranger: Stranger) -> None:
    line = stranger.refusal("colours", "--weights", stranger.folder / "payload.pth")

    assert "Skerry never unpickles code" in line
    assert not (stranger.folder / "payload-ran").exists()


@pytest.mark.slow
def test_weights_that_are_not_numbers(stranger: Stranger) -> None:
    line = stranger.refusal("colours", "--weights", stranger.folder / "nan.pth")

    assert "not finite" in line  # and no word of layers that diverge: torch itself says nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "said"),
    [
        ("absent", "faulty.py has no 'absent'; it has: "),
        ("number", "faulty.py:number is not callable"),
        ("raises", "faulty.py:raises() failed: RuntimeError: no backbone today (faulty.py:10)"),
        ("nothing", "faulty.py:nothing() returned NoneType; expected a torch.nn.Module"),
        ("leaves", "the process that runs your model ended in 'load' (exit code 3"),
        ("dies", "the process that runs your model ended in 'load' (signal 11"),
        ("two_outputs", "the model returns 2 value(s) (Tensor, Tensor); the recipe names 1: scores"),
        ("half_precision", "float16"),
        ("large", "the model does not take an input of 1x3x32x32"),
        ("broken_forward", "has no attribute 'no_such_thing' (faulty.py:39)"),
        ("bessel", "torch cannot export the model to ONNX: No ONNX function found for"),
    ],
)
def test_code_that_does_not_make_a_model(stranger: Stranger, build: str, said: str) -> None:
    assert said in stranger.refusal(f"colours/faulty.py:{build}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["text", "half", "chunk"])
def test_a_photo_that_cannot_be_read(stranger: Stranger, tmp_path: Path, how: str) -> None:
    calib = tmp_path / "photos"
    shutil.copytree(stranger.photos, calib)
    write_broken(calib / "broken.png", how)

    line = stranger.refusal("colours", "--weights", stranger.folder / "whole.pth", calib=calib)

    assert "cannot read the image" in line
    assert "broken.png" in line


@pytest.mark.slow
def test_a_single_photo_is_too_little_even_by_force(stranger: Stranger, tmp_path: Path) -> None:
    for number in range(8):  # on whichever side of the split the one photo falls
        calib = photograph(tmp_path / str(number), 1, first=number)
        line = stranger.refusal("colours", "--weights", stranger.folder / "whole.pth", "--force", calib=calib)
        assert "--calib" in line


# A device: what its agent is given


@dataclass(frozen=True)
class Device:
    """An agent's data directory, with a release in service."""

    shell: Shell
    data: Path
    trust: Path

    def agent(self, command: str, *words: object) -> list[object]:
        trust = [] if command == "status" else ["--trust", self.trust]
        return ["agent", command, "--data", self.data, *trust, *words]

    def refusal(self, command: str, *words: object) -> str:
        """What the agent says when it refuses; its record must not change by that."""
        before = self.record()
        line = self.shell.skerry(*self.agent(command, *words), seconds=20.0).refusal()
        assert self.record() == before
        assert [str(p) for p in self.data.rglob("*.part")] == []
        return line

    def record(self) -> dict[str, Any]:
        """What decides what runs, by the command that a person would use."""
        found: dict[str, Any] = self.status()["record"]
        # Who holds the record changes with every run; what it says must not.
        return {key: found[key] for key in ("state", "active", "previous", "good", "rejected", "target")}

    def status(self) -> dict[str, Any]:
        said = self.shell.skerry(*self.agent("status", "--json"))
        assert said.code == 0, said.err
        found: dict[str, Any] = json.loads(said.out)
        return found

    def live(self) -> dict[str, Any] | None:
        """The running agent's own status, by HTTP: quick enough to poll."""
        try:
            return status_at(json.loads((self.data / "agent.json").read_text())["port"])
        except (OSError, ValueError):
            return None

    def wait(self, what: str, reached: Callable[[dict[str, Any]], bool], seconds: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.live()
            if status is not None and reached(status):
                return status
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {what}")


def status_at(port: int) -> dict[str, Any] | None:
    """The status of the agent on this port; None if it does not answer."""
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/status")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
    except (OSError, ValueError, http.client.HTTPException):
        return None


def kept(status: dict[str, Any]) -> bool:
    return status["record"]["state"] == "idle" and status["record"]["active"] is not None


def processed(status: dict[str, Any]) -> int:
    return sum(source["processed"] for source in status["sources"].values())


CONFIG = """
data = "{data}"
trust = ["{trust}"]
[[sources]]
url = "{film}"
name = "door"
loop = true
[events]
when = "every"
min_score = 0.0
terminal = false
[probation]
seconds = 0.5
min_frames = 5
"""


@contextlib.contextmanager
def running(device: Device, folder: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A real agent that watches a film over and over, until the block ends."""
    config = folder / "agent.toml"
    config.write_text(CONFIG.format(data=device.data, trust=device.trust, film=film(folder / "door.mp4")))
    process = device.shell.start("agent", "run", "--config", config, *words)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def new_device(folder: Path, data: Path) -> Device:
    folder.mkdir(exist_ok=True)
    return Device(Shell(folder / "home"), data, write_keys(folder))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A running agent whose release is kept."""
    folder = tmp_path_factory.mktemp("served")
    device = new_device(folder, folder / "data")
    bundle, _ = Tiny().pack(folder)
    with running(device, folder, "--model", bundle):
        device.wait("the release is kept", kept)
        yield device


def garbled(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 0xFF]) + raw[middle + 1 :]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (garbled, ""),
        (lambda raw: raw[: len(raw) // 2], "the archive ends"),
        (lambda _raw: b"", "the archive ends"),
        (lambda _raw: b"this is no bundle" * 100, ""),
        (lambda raw: raw + b"?", "bytes after the archive's end"),
    ],
    ids=["garbled", "half", "empty", "text", "longer"],
)
def test_a_bundle_that_is_not_whole(served: Device, tmp_path: Path, spoil: Callable[[bytes], bytes], said: str) -> None:
    whole, _ = Tiny(version=2).pack(tmp_path)
    (tmp_path / "bad.skb").write_bytes(spoil(whole.read_bytes()))
    before = processed(served.wait("it runs", kept))

    line = served.refusal("install", tmp_path / "bad.skb")

    assert line.startswith("skerry agent: ")
    assert said in line
    served.wait("vision goes on", lambda status: processed(status) > before)


def test_a_bundle_of_a_stranger(served: Device, tmp_path: Path) -> None:
    bundle, _ = Tiny(version=2, key=OTHER_KEY).pack(tmp_path)

    line = served.refusal("install", bundle)

    assert line.startswith("skerry agent: ")
    assert "trust" in line


def test_a_bundle_that_is_not_there(served: Device, tmp_path: Path) -> None:
    assert "expected a .skb file or a bundle's folder" in served.refusal("install", tmp_path / "nowhere.skb")


def test_no_key_to_trust(served: Device, tmp_path: Path) -> None:
    bundle, _ = Tiny(version=2).pack(tmp_path)

    line = served.shell.skerry("agent", "install", bundle, "--data", served.data).refusal()

    assert "no key is trusted: name the public key of who signs your bundles with --trust" in line


def test_a_second_agent_on_the_same_data(served: Device, tmp_path: Path) -> None:
    line = served.refusal("run", "--source", film(tmp_path / "other.mp4"), "--quiet")

    assert "another agent runs on" in line


def test_a_release_that_does_not_prove_itself_is_refused_and_the_one_before_serves_on(
    served: Device, tmp_path: Path
) -> None:
    before = served.wait("it runs", kept)["record"]
    bundle, release = Tiny(version=3, labels=["green", "red", "blue"], bend=relabelled).pack(tmp_path)

    said = served.shell.skerry(*served.agent("install", bundle, "--wait", "60"))

    assert said.code == 1
    assert "its answers differ from fp32" in said.line("refused:")
    after = served.wait("it runs", kept)["record"]
    assert after["active"] == before["active"]
    assert release in after["rejected"]


def relabelled(fields: dict[str, Any]) -> dict[str, Any]:
    """Exchanges two labels behind the proof's back."""
    return {**fields, "labels": ["red", "green", "blue"]}


# A device: what its agent watches


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """The data of an agent that was stopped, its release kept."""
    folder = tmp_path_factory.mktemp("settled")
    device = new_device(folder, folder / "data")
    bundle, _ = Tiny().pack(folder)
    with running(device, folder, "--model", bundle):
        device.wait("the release is kept", kept)
    return device


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.mp4", None, "is not there; expected rtsp://host/path"),
        ("street.mp4", b"\0\0\0 ftypisom and then nothing that is a film", "cannot open the video"),
        ("notes.txt", b"no film", "is neither a video (.avi"),
        ("photos/notes.txt", b"no photo", "holds no image; expected .bmp"),
    ],
)
def test_a_source_that_cannot_be_read(
    settled: Device, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    source = file.parent if "/" in name else file

    line = settled.refusal("run", "--every", "--quiet", "--source", source)

    assert line.startswith("skerry agent run: ")
    assert said in line


@pytest.mark.slow
@pytest.mark.parametrize("how", ["text", "half", "chunk"])
def test_a_source_with_a_photo_that_cannot_be_read(settled: Device, tmp_path: Path, how: str) -> None:
    """The agent ends by itself behind the last photo: it must not say that all is well."""
    photograph(tmp_path / "photos", 6)
    write_broken(tmp_path / "photos" / "003.png", how)

    line = settled.refusal("run", "--every", "--quiet", "--source", tmp_path / "photos")

    assert "cannot read the image" in line
    assert "003.png" in line


def test_a_film_that_is_damaged_in_the_middle(settled: Device, tmp_path: Path) -> None:
    street = damaged_film(tmp_path / "street.mp4")

    line = settled.refusal("run", "--every", "--quiet", "--source", street)

    assert "street.mp4 is damaged" in line


def test_a_bundle_that_is_not_whole_on_the_command_line(settled: Device, tmp_path: Path) -> None:
    whole, _ = Tiny(version=2).pack(tmp_path)
    (tmp_path / "bad.skb").write_bytes(garbled(whole.read_bytes()))

    line = settled.refusal("run", "--quiet", "--model", tmp_path / "bad.skb", "--source", film(tmp_path / "a.mp4"))

    assert line.startswith("skerry agent run: ")


# A full disk


@dataclass(frozen=True)
class SmallDisk:
    """Two megabytes that can be filled."""

    root: Path

    def fill(self, but_kib: int = 0) -> None:
        """Leaves so much free."""
        self.free()
        free = shutil.disk_usage(self.root).free
        (self.root / "fill").write_bytes(bytes(max(0, free - (but_kib << 10))))

    def free(self) -> None:
        (self.root / "fill").unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk, this needs root: {mounted.stderr.strip()}")
    yield SmallDisk(root)
    subprocess.run(["umount", "-l", str(root)], check=True)


@dataclass(frozen=True)
class Worked:
    """A compilation whose passes are done: what it has left to do fits on no full disk."""

    stranger: Stranger
    work: Path

    def refusal(self, out: Path, work: Path) -> str:
        weights = self.stranger.folder / "whole.pth"
        words = [self.stranger.folder / "colours", "--calib", self.stranger.photos, "--weights", weights, *TARGET]
        return self.stranger.shell.skerry("compile", *words, "-o", out, "--work", work).refusal()


@pytest.fixture(scope="module")
def worked(stranger: Stranger, tmp_path_factory: pytest.TempPathFactory) -> Worked:
    folder = tmp_path_factory.mktemp("worked")
    words = [stranger.folder / "colours", "--calib", stranger.photos, *TARGET, "--work", folder / "work"]
    weights = ["--weights", stranger.folder / "whole.pth"]
    assert stranger.shell.skerry("compile", *words, *weights, "-o", folder / "net.skb").code == 0
    return Worked(stranger, folder / "work")


@pytest.mark.slow
def test_no_room_for_the_bundle(worked: Worked, small_disk: SmallDisk) -> None:
    small_disk.fill(but_kib=60)

    line = worked.refusal(small_disk.root / "net.skb", worked.work)

    assert "the disk is full; free some space" in line
    assert [p.name for p in small_disk.root.iterdir()] == ["fill"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["bundle", "calibrate", "quantize-int8-rr", "export", "reference"])
def test_no_room_for_a_pass(worked: Worked, small_disk: SmallDisk, tmp_path: Path, lost: str) -> None:
    work = small_disk.root / "work"
    shutil.copytree(worked.work, work)
    for folder in work.iterdir():
        if folder.is_dir() and folder.name.startswith((lost, "bundle")):
            shutil.rmtree(folder)
    small_disk.fill(but_kib=8)

    line = worked.refusal(tmp_path / "net.skb", work)

    assert "disk is full" in line or "No space left" in line
    assert not (tmp_path / "net.skb").exists()
    assert [p.name for p in work.rglob("*.part")] == []


def installed(small_disk: SmallDisk, folder: Path) -> Device:
    """A device whose data lies on the small disk, stopped, its release kept."""
    device = new_device(folder, small_disk.root / "data")
    bundle, _ = Tiny().pack(folder)
    with running(device, folder, "--model", bundle):
        device.wait("the release is kept", kept)
    return device


@pytest.mark.slow
def test_no_room_for_a_release(small_disk: SmallDisk, tmp_path: Path) -> None:
    device = installed(small_disk, tmp_path)
    bundle, _ = Tiny(version=2).pack(tmp_path)
    wish = (device.data / "desired.json").read_bytes()

    for room in (0, 8):
        small_disk.fill(but_kib=room)
        line = device.refusal("install", bundle)
        assert "the disk is full; free some space, nothing was changed" in line
        assert (device.data / "desired.json").read_bytes() == wish


@pytest.mark.slow
def test_a_full_disk_at_the_start_is_no_crash_and_says_nothing_about_the_release(
    small_disk: SmallDisk, tmp_path: Path
) -> None:
    """It may start and watch, or say in one line that it cannot; it must not go round and blame what it runs."""
    device = new_device(tmp_path, small_disk.root / "data")
    bundle, release = Tiny().pack(tmp_path)
    photograph(tmp_path / "photos", 3)
    watch = ["--every", "--quiet", "--source", tmp_path / "photos"]
    first = device.shell.skerry(*device.agent("run", "--model", bundle, *watch))
    assert first.code == 0, first.err
    assert device.record()["state"] == "probation"
    small_disk.fill()

    process = device.shell.start(*device.agent("run", *watch))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    process.terminate()
    said, _ = process.communicate(timeout=30)

    small_disk.free()
    assert "Traceback" not in said
    assert "starting it again" not in said
    record = device.record()
    assert record["rejected"] == {}
    assert record["active"]["release"] == release


@pytest.mark.slow
def test_a_device_that_starts_with_a_full_disk_watches_all_the_same(small_disk: SmallDisk, tmp_path: Path) -> None:
    device = installed(small_disk, tmp_path)
    small_disk.fill()

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(device, tmp_path, "--quiet", "--port", port):
        deadline, seen = time.monotonic() + 20, 0
        while seen <= 20 and time.monotonic() < deadline:
            time.sleep(0.1)
            status = status_at(port)
            seen = processed(status) if status else 0

    small_disk.free()
    assert seen > 20
    assert device.record()["rejected"] == {}


@pytest.mark.slow
def test_a_disk_that_fills_while_the_agent_watches(small_disk: SmallDisk, tmp_path: Path) -> None:
    device = new_device(tmp_path, small_disk.root / "data")
    bundle, _ = Tiny().pack(tmp_path)
    events = tmp_path / "events.jsonl"
    with running(device, tmp_path, "--model", bundle, "--jsonl", events, "--quiet"):
        before = device.wait("the release is kept", kept)
        small_disk.fill()
        full = device.wait("events have no room", lambda status: status["outbox"]["unrecorded"] > 20)
        small_disk.free()
        lost = device.wait("there is room", lambda s: s["outbox"]["accepted"] > full["outbox"]["accepted"] + 20)
    assert processed(lost) > processed(full) > processed(before)  # vision never stopped
    assert lost["record"] == before["record"]
    numbers = [json.loads(line)["seq"] for line in events.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))  # what was accepted is told, each event once


# Inspecting


def test_a_bundle_is_inspected_only_if_it_may_be_used(served: Device, tmp_path: Path) -> None:
    bundle, _ = Tiny(key=OTHER_KEY).pack(tmp_path)

    assert "trust" in served.shell.skerry("inspect", bundle, "--trust", served.trust).refusal()


def test_a_reader_that_goes_away_is_no_error(served: Device, tmp_path: Path) -> None:
    """`skerry inspect … | head -1`, as everybody types."""
    bundle, _ = Tiny().pack(tmp_path)
    command = f"{SKERRY[0]} inspect {bundle} --trust {served.trust} | true"

    done = subprocess.run(
        command, shell=True, env=served.shell.environment(), capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
