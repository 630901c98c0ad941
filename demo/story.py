"""`make demo`: from a trained model to a device that proves each release, and comes back from a bad one by itself.

Real weights, real photos, a real street video, real processes; every number is measured while it is told. Nothing is
kept between runs but the downloaded assets.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from demo.device import SKERRY, Device, counts, exact_sum, in_service
from scripts.fetch_assets import fetch
from skerry.execution.device import this_device

ROOT = Path(__file__).parent.parent
SPEED = 15  # the product's own probation is 60 s; the story's is that, divided by this
PROBATION_S = 60.0 / SPEED
SHOWN_PER_CHAPTER = 12


class Story:
    """Tells the chapters in order. ``folder`` holds everything that this run makes."""

    def __init__(self, folder: Path) -> None:
        self.console = Console(highlight=False)
        self.folder = folder
        self.assets = fetch(ROOT / "assets")
        self._lines: deque[str] = deque(maxlen=2000)
        self._shown = self._hidden = 0
        self._lock = threading.Lock()

    def tell(self) -> None:
        """The whole story."""
        started = time.monotonic()
        first = self.compile_first()
        second = self.in_background("release 2", self.compile_arguments("models/mobilenetv2", 2, ["photos", "video"]))
        with self.start_device(first) as device:
            self.goes_live(device)
            self.hot_swap(device, second)
            fourth = self.in_background("release 4", self.patient_arguments())
            self.bad_release(device)
            self.slow_release(device, fourth)
            self.killed(device, first)
        self.count_events()
        self.end(time.monotonic() - started)

    # Chapters

    def compile_first(self) -> Path:
        self.chapter(
            "1. A trained model becomes a release",
            "ImageNet's MobileNetV2 with its real weights: exported, quantized, each hop held to torch, signed.",
        )
        arguments = self.compile_arguments("models/mobilenetv2", 1, ["photos", "video/carphone_pristine.mp4"])
        if subprocess.run([*SKERRY, "compile", *arguments], check=False, env=self.environment()).returncode:
            raise SystemExit("release 1 did not compile")
        return self.folder / "mobilenetv2-1.skb"

    def goes_live(self, device: Device) -> None:
        self.chapter(
            "2. A device proves it, and goes live",
            "The agent runs the release's own proof in a child with limits; only then does a street video meet it.",
        )
        status = device.wait("release 1 is live", lambda s: s["vision"], 60)
        for proof in status["proofs"]:
            self.say(
                f"proved here: {proof['variant']}: {proof['same']} of {proof['decided']} answers agree with torch, "
                f"SQNR {proof['sqnr_db']:.1f} dB, {proof['time_ms']:.1f} ms a frame"
            )
        status = device.wait("release 1 is kept", lambda s: s["record"]["state"] == "idle", 60)
        self.say(f"[green]kept[/] after {PROBATION_S:.0f} s on probation (the product's 60 s, divided by {SPEED})")

    def hot_swap(self, device: Device, second: Background) -> None:
        self.chapter(
            "3. Release 2 arrives while it runs",
            "Calibrated anew, with frames of this very street. Proved beside the one in service, swapped in.",
        )
        bundle = second.result()
        device.install(bundle)
        status = device.wait("release 2 is live", lambda s: s["record"]["state"] == "probation", 60)
        latency = status["latency"]
        self.say(f"[green]swapped[/], no frame lost: {exact_sum(status)}")
        if latency:
            self.say(f"capture to answer: p50 {latency['p50_ms']:.1f} ms, p99 {latency['p99_ms']:.1f} ms")

    def bad_release(self, device: Device) -> None:
        what = "its colour channels are swapped" if self.vnni else "int8 that saturates on this CPU"
        self.chapter(
            "4. Release 3 is bad",
            f"One careless edit: {what}. The compiler refuses it. Forced, the device refuses it.",
        )
        arguments = self.bad_arguments()
        done = subprocess.run(
            [*SKERRY, "compile", *arguments], check=False, env=self.environment(), capture_output=True, text=True
        )
        if done.returncode == 0:
            raise SystemExit("the compiler let release 3 pass")
        self.say(f"[red]compiler:[/] {escape(' '.join(done.stderr.split()))}")
        self.say("forcing it (the bundle's evidence says so, and no limit is loosened) …")
        subprocess.run(
            [*SKERRY, "compile", *arguments, "--force"], check=True, env=self.environment(), capture_output=True
        )
        before = device.wait("release 2 is kept", lambda s: s["record"]["state"] == "idle", 60)
        device.install(self.folder / "mobilenetv2-3.skb")
        after = device.wait("release 3 is refused", lambda s: bool(s["record"]["rejected"]), 60)
        self.say(f"[red]device:[/] refused: {next(iter(after['record']['rejected'].values()))}")
        self.say(f"meanwhile vision never stopped: {self.growth(before, after)}")

    def slow_release(self, device: Device, fourth: Background) -> None:
        self.chapter(
            "5. Release 4 is honest, and too slow",
            "Sixteen shifted looks at each frame: every answer agrees, so its proof passes. The stream does not wait.",
        )
        device.install(fourth.result())
        status = device.wait("release 4 is live", lambda s: s["record"]["state"] == "probation", 60)
        bad = status["record"]["active"]["release"]
        self.say("it proved itself and went live; now the stream judges …")
        status = device.wait(
            "the device has come back",
            lambda s: bad in s["record"]["rejected"] and s["record"]["state"] == "idle",
            60,
        )
        self.say(f"[red]probation:[/] {status['record']['rejected'][bad]}")
        self.say(f"[green]returned by itself[/] to {in_service(status)}: {exact_sum(status)}")

    def killed(self, device: Device, first: Path) -> None:
        self.chapter(
            "6. kill -9 in the middle of an update",
            "Release 1 is installed again; while its proof runs, the agent is killed.",
        )
        device.install(first)
        status = device.wait("the proof runs", lambda s: s["record"]["state"] == "proving", 30)
        device.kill(status)
        self.say(f"killed process {status['pid']} in state proving")
        again = device.wait("it is back", lambda s: s["pid"] != status["pid"] and s["vision"], 30)
        self.say(f"process {again['pid']} serves the release that was kept, and takes the update up where it was cut")
        final = device.wait(
            "release 1 is kept",
            lambda s: s["record"]["state"] == "idle" and in_service(s) == "mobilenetv2@1",
            60,
        )
        self.say(f"[green]kept[/]: {in_service(final)}")

    def count_events(self) -> None:
        """Every event that the disk accepted is in the file once, across the swaps, the returns and the kill."""
        self.say(escape(self._lines[-1]))
        numbers = [json.loads(line)["seq"] for line in self.jsonl.read_text().splitlines()]
        exact = numbers == list(range(1, len(numbers) + 1))
        self.say(f"the file of events: {len(numbers)} lines, {'each number once, in order' if exact else 'NOT EXACT'}")
        if not exact:
            raise SystemExit("events were lost or doubled")

    def end(self, seconds: float) -> None:
        self.console.print(Rule(f"told in {seconds:.0f} s"))
        self.console.print("try next:")
        for command in (
            "skerry doctor",
            "skerry compile models/mobilenetv2 --weights assets/weights/*.pth --calib assets -o net.skb",
            "skerry agent run --model net.skb --source assets/video/bikes.mp4",
        ):
            self.console.print(f"  .venv/bin/{command}", soft_wrap=True)

    # What the chapters are made of

    @property
    def vnni(self) -> bool:
        return "vnni" in this_device().cpu

    def compile_arguments(self, model: str, version: int, calib: list[str], *more: str) -> list[str]:
        calibration = [part for path in calib for part in ("--calib", str(self.assets / path))]
        weights = str(self.assets / "weights" / "mobilenet_v2-b0353104.pth")
        out = str(self.folder / f"mobilenetv2-{version}.skb")
        work = str(self.folder / "work")
        return [model, "--weights", weights, *calibration, "--release", str(version), "--work", work, "-o", out, *more]

    def bad_arguments(self) -> list[str]:
        """Release 3: what is careless enough for this CPU to show it."""
        calib = ["photos", "video/carphone_pristine.mp4"]
        if not self.vnni:
            return self.compile_arguments(
                "models/mobilenetv2", 3, calib, "--target", str(ROOT / "demo/releases/careless.toml")
            )
        copy = self.folder / "release3"
        shutil.copytree(ROOT / "models/mobilenetv2", copy, dirs_exist_ok=True)
        recipe = copy / "recipe.toml"
        recipe.write_text(recipe.read_text().replace('color = "rgb"', 'color = "bgr"'))
        return self.compile_arguments(str(copy), 3, calib, "--target", str(ROOT / "demo/releases/fp32.toml"))

    def patient_arguments(self) -> list[str]:
        """Release 4: fp32 alone, since its sin is not in its numbers."""
        copy = self.folder / "release4"
        shutil.copytree(ROOT / "models/mobilenetv2", copy, dirs_exist_ok=True)
        shutil.copy(ROOT / "demo/releases/patient.py", copy)
        target = ("--target", str(ROOT / "demo/releases/fp32.toml"))
        return self.compile_arguments(f"{copy / 'patient.py'}:build", 4, ["photos"], *target)

    def in_background(self, name: str, arguments: list[str]) -> Background:
        return Background(name, arguments, self.environment())

    def environment(self) -> dict[str, str]:
        """A key of this run alone."""
        return {**os.environ, "XDG_CONFIG_HOME": str(self.folder / "config")}

    def start_device(self, bundle: Path) -> Device:
        data, config = self.folder / "device", self.folder / "agent.toml"
        config.write_text(
            f'data = "{data}"\n'
            f'trust = ["{self.folder}/config/skerry/signing.pem.pub"]\n'
            f'[[sources]]\npath = "{self.assets}/video/bikes.mp4"\nname = "street"\nloop = true\n'
            f'[events]\njsonl = "{self.jsonl}"\n'
            f"[probation]\nseconds = {PROBATION_S}\n"
        )
        os.environ["XDG_CONFIG_HOME"] = str(self.folder / "config")
        return Device(config, data, bundle, self.hear)

    def hear(self, line: str) -> None:
        """A line of the device's own output; a chapter shows only so many of the events."""
        with self._lock:
            self._lines.append(line)
            is_event = "#" in line and "update" not in line
            if is_event and self._shown >= SHOWN_PER_CHAPTER:
                self._hidden += 1
                return
            self._shown += is_event
        self.console.print(f"[cyan]device │[/] [dim]{escape(line)}[/]", soft_wrap=True)

    @property
    def jsonl(self) -> Path:
        return self.folder / "events.jsonl"

    def chapter(self, title: str, text: str) -> None:
        with self._lock:
            if self._hidden:
                self.console.print(f"[cyan]device │[/] [dim]… and {self._hidden} events more[/]")
            self._shown = self._hidden = 0
        self.console.print(Rule(title, align="left"))
        self.console.print(text, style="italic")

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", soft_wrap=True)

    @staticmethod
    def growth(before: dict[str, object], after: dict[str, object]) -> str:
        now, then = counts(after), counts(before)
        return ", ".join(
            f"{now[name] - then[name]} {name}" for name in ("captured", "processed", "superseded", "failed")
        )


class Background:
    """A compilation beside the story, at low priority so that the device has the cores it needs."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        self._name, self._out = name, Path(arguments[arguments.index("-o") + 1])
        self._process = subprocess.Popen(
            ["nice", "-n", "10", *SKERRY, "compile", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def result(self) -> Path:
        """Waits for the bundle."""
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"{self._name} did not compile: {said}")
        return self._out


def main() -> int:
    """Tells the story in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="skerry-demo-") as folder:
        Story(Path(folder)).tell()
    return 0


if __name__ == "__main__":
    sys.exit(main())
