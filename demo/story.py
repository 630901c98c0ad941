"""`make demo`: from a trained model to a fleet that proves each release, and brings a bad one home by itself.

Real weights, real photos, a real street video, a real hub, three real agents; every number is measured while it is
told. Nothing is kept between runs but the downloaded assets.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from demo.device import SKERRY, Device, Program, Status, command, counts, exact_sum, free_port, wait
from demo.network import Network
from scripts.fetch_assets import fetch
from skerry.execution.device import this_device
from skerry.fleet.client import Client, load_profile
from skerry.fleet.documents import Event, Policy, Rollout
from skerry.fleet.show import decision

ROOT = Path(__file__).parent.parent
SPEED = 100  # every policy of the product, divided by this
PROBATION_S, REPORT_S, KEEPALIVE_S, ACK_S, PAUSE_S = (default / SPEED for default in (60, 30, 20, 20, 60))
DEVICES = ("gate", "yard", "roof")
SHOWN_PER_CHAPTER = 6
OUTAGE_S = 8.0


class Story:
    """Tells the chapters in order. ``folder`` holds everything that this run makes."""

    def __init__(self, folder: Path, programs: contextlib.ExitStack) -> None:
        self.console = Console(highlight=False)
        self.folder, self.programs = folder, programs
        self.assets = fetch(ROOT / "assets")
        self._shown = self._hidden = 0
        self._lock = threading.Lock()
        self.ended = False
        os.environ["XDG_CONFIG_HOME"] = str(folder / "config")  # a signing key and an operator of this run alone
        self.port, self.broker_port = free_port(), free_port()
        self.network = Network(self.broker_port)
        self.devices: list[Device] = []

    def tell(self) -> None:
        """The whole story."""
        started = time.monotonic()
        first = self.compile_first()
        self.hub = self.start_hub()
        with Client(load_profile(self.folder / "hub" / "operator.json")) as self.client:
            self.fleet_joins()
            second = self.in_background("release 2", [*self.bad_arguments(), "--force"])
            third = self.goes_out_in_waves(first)
            self.bad_release(second)
            self.slow_release(third)
            self.dead_network()
            self.reckon()
        self.ended = True
        self.console.print(Rule(f"told in {time.monotonic() - started:.0f} s"))

    # Chapters

    def compile_first(self) -> Path:
        self.chapter(
            "1. A trained model becomes a release",
            "ImageNet's MobileNetV2 with its real weights: exported, quantized, each hop held to torch, signed.",
        )
        arguments = self.compile_arguments("models/mobilenetv2", 1, ["photos", "video/carphone_pristine.mp4"])
        if subprocess.run([*SKERRY, "compile", *arguments], check=False).returncode:
            raise SystemExit("release 1 did not compile")
        return self.folder / "mobilenetv2-1.skb"

    def fleet_joins(self) -> None:
        self.chapter(
            "2. Three devices join",
            "A hub with its broker: one command. One token; each device makes a key of its own, which never leaves it.",
        )
        token = command("fleet", "token", "create", "--group", "cameras", "--uses", str(len(DEVICES)))
        for name in DEVICES:
            device = Device(name, self.agent_config(name), self.folder / name, token, self.hear(name))
            self.devices.append(self.programs.enter_context(device))
            self.hub_sees(
                f"{name} has joined", lambda n=name: any(d.name == n and d.online for d in self.client.devices())
            )
        for d in self.client.devices("cameras"):
            self.say(f"[green]joined[/]: {d.name} is {d.id}")
        policy = Policy()
        self.say(
            f"policies: the product's own, divided by {SPEED}: probation 60 s → {PROBATION_S:g} s (and 50 frames), "
            f"soak {policy.soak_s} s → {policy.soak_s / SPEED:g} s, offline after {policy.offline_after_s} s → "
            f"{policy.offline_after_s // SPEED} s, clock 24 h → {policy.clock_s // SPEED / 60:.0f} min"
        )

    def goes_out_in_waves(self, bundle: Path) -> Background:
        self.chapter(
            "3. Release 1 goes out in waves, and the hub is killed on the way",
            "One canary, half, all. A wave opens on what the devices of the one before measured, and on nothing else.",
        )
        number = self.start_rollout(bundle, "mobilenetv2@1")
        self.follow(number, until=lambda r: r.wave >= 1)
        self.say("[red]kill -9[/] to the hub, in the middle of wave 2 …")
        self.hub.kill()
        then = counts(self.look(self.devices[0]))["processed"]
        self.hub = self.start_hub()
        third = self.in_background("release 3", self.patient_arguments())
        again = counts(self.devices[0].wait("vision goes on", lambda _: True, 20))["processed"]
        self.say(f"meanwhile the canary processed {again - then} frames; the hub reads its rows, and goes on:")
        done = self.follow(number, until=lambda r: r.state == "done", told=self._told)
        for wave in done.members:
            for d in wave:
                if d.time_ms is not None:
                    self.say(f"proved on {d.name}: {d.time_ms:.1f} ms a frame, kept for {d.soaked_s:.0f} s")
        return third

    def bad_release(self, second: Background) -> None:
        what = "its colour channels are swapped" if self.vnni else "int8 that saturates on this CPU"
        self.chapter(
            "4. Release 2 is bad, and reaches nobody",
            f"One careless edit: {what}. The compiler refuses it. Forced, the canary's own proof refuses it.",
        )
        done = subprocess.run([*SKERRY, "compile", *self.bad_arguments()], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            raise SystemExit("the compiler let release 2 pass")
        self.say(f"[red]compiler:[/] {escape(' '.join(done.stderr.split()))}")
        self.say("forcing it (the bundle's evidence says so, and no limit is loosened) …")
        number = self.start_rollout(second.result(), "mobilenetv2@2")
        self.follow(number, until=lambda r: r.state == "taken back")

    def slow_release(self, third: Background) -> None:
        self.chapter(
            "5. Release 3 is honest, and too slow",
            "Sixteen shifted looks at each frame: every answer agrees, so its proof passes. The stream does not wait.",
        )
        number = self.start_rollout(third.result(), "mobilenetv2@3")
        self.follow(number, until=lambda r: r.state == "taken back")
        status = self.devices[0].wait("the canary is back", lambda s: s["record"]["state"] == "idle", 30)
        self.say(f"the canary's frames, exactly: {exact_sum(status)}")
        for d in self.client.devices():
            self.say(f"{d.name} runs [green]{d.active}[/]")

    def dead_network(self) -> None:
        self.chapter(
            "6. The network swallows every packet",
            f"No connection is closed, nobody is told. For {OUTAGE_S:.0f} s nothing arrives; vision does not notice.",
        )
        before = [counts(self.look(d)) for d in self.devices]
        self.network.cut()
        for d in self.devices:
            d.wait(f"{d.name} notices", lambda s: not s["link"]["connected"], 60)
        time.sleep(OUTAGE_S)
        for d, then in zip(self.devices, before, strict=True):
            status = self.look(d)
            self.say(
                f"{d.name}: {counts(status)['processed'] - then['processed']} frames processed meanwhile, "
                f"{status['link']['waiting']} events wait on its disk"
            )
        self.network.mend()
        for d in self.devices:
            d.wait(f"{d.name} has told everything", lambda s: s["link"]["connected"] and not s["link"]["waiting"], 60)
        self.say("[green]mended[/]: every device is connected, and nothing waits")

    def reckon(self) -> None:
        """What the story claimed, from the events that the hub holds."""
        self.console.print(Rule("The reckoning", align="left"))
        names = {r.id: r.version for r in self.client.releases()}
        devices = {d.id: d.name for d in self.client.devices()}
        events = self.events()
        numbers: dict[str, list[int]] = {}
        live: dict[int, set[str]] = {}
        for e in events:
            numbers.setdefault(e.stream, []).append(e.seq)
            if e.event["kind"] == "updated" and e.event["event"] == "switched":
                live.setdefault(names[e.event["release"]], set()).add(devices[e.device])
        exact = all(sorted(seen) == list(range(1, len(seen) + 1)) for seen in numbers.values())
        self.claim(
            exact, f"the hub has each of {len(events)} events once, from {len(devices)} devices, none is missing"
        )
        self.claim(live.get(1) == set(DEVICES), f"release 1 was active on {', '.join(sorted(live.get(1, ())))}")
        self.claim(2 not in live, "release 2 was never active anywhere")
        self.claim(
            live.get(3) == {DEVICES[0]}, f"release 3 was active on the canary alone: {', '.join(live.get(3, ()))}"
        )
        ends = Counter(d.active for d in self.client.devices())
        self.claim(ends == {"mobilenetv2@1": len(DEVICES)}, "the fleet ended on release 1, with no human step")

    # What the chapters are made of

    def claim(self, holds: bool, what: str) -> None:  # noqa: FBT001 - a claim and its words
        self.say(f"[green]✓[/] {what}" if holds else f"[red]NOT SO:[/] {what}")
        if not holds:
            raise SystemExit("the story did not hold")

    def events(self) -> list[Event]:
        found: list[Event] = []
        while page := self.client.events(after=found[-1].id if found else 0, limit=10_000).events:
            found += page
        return found

    def start_rollout(self, bundle: Path, name: str) -> int:
        self.say(escape(command("fleet", "bundle", "push", str(bundle))))
        policy = Policy()
        said = command(
            "fleet", "rollout", "start", name, "--group", "cameras", "--canary", "1", "--waves", "50%,100%",
            "--soak", str(policy.soak_s // SPEED), "--clock", str(policy.clock_s // SPEED),
            "--offline-after", str(policy.offline_after_s // SPEED),
        )  # fmt: skip
        self.say(escape(said))
        return int(said.split()[1])

    def follow(self, number: int, until: Any, told: int = 0) -> Rollout:
        """Shows a rollout's decisions as they are taken."""
        self._told = told

        def look() -> Status | None:
            seen = self.client.rollout(number)
            for step in seen.log[self._told :]:
                self.console.print("  ", decision(step), soft_wrap=True)
            self._told = len(seen.log)
            return {"rollout": seen} if until(seen) else None

        found: Rollout = wait(f"rollout {number}", look, 120)["rollout"]
        return found

    def hub_sees(self, what: str, reached: Any) -> None:
        wait(what, lambda: {} if reached() else None, 60)

    @staticmethod
    def look(device: Device) -> Status:
        return device.wait("its status", lambda _: True, 20)

    @property
    def vnni(self) -> bool:
        return "vnni" in this_device().cpu

    def start_hub(self) -> Program:
        arguments = [
            "hub",
            "serve",
            "--data",
            str(self.folder / "hub"),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        arguments += ["--mqtt-port", str(self.broker_port), "--broker-at", f"localhost:{self.network.port}"]
        hub = self.programs.enter_context(Program(arguments, self.hear("hub", everything=False)))
        profile = self.folder / "hub" / "operator.json"

        def answers() -> bool:
            hub.check("the hub starts")
            with contextlib.suppress(Exception), Client(load_profile(profile)) as client:
                return client.health().broker
            return False

        self.hub_sees("the hub answers", answers)
        return hub

    def agent_config(self, name: str) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(
            f'data = "{self.folder / name}"\nthreads = 1\n'
            f'[[sources]]\nurl = "{self.assets}/video/bikes.mp4"\nname = "street"\nloop = true\n'
            f"[probation]\nseconds = {PROBATION_S}\n"
            f"[link]\nreport_s = {REPORT_S}\nkeepalive_s = {max(1, round(KEEPALIVE_S))}\n"
            f"ack_s = {max(1.0, ACK_S)}\nlongest_pause_s = {max(1.0, PAUSE_S)}\n"
        )
        return path

    def compile_arguments(self, model: str, version: int, calib: list[str], *more: str) -> list[str]:
        calibration = [part for path in calib for part in ("--calib", str(self.assets / path))]
        weights = str(self.assets / "weights" / "mobilenet_v2-b0353104.pth")
        out = str(self.folder / f"mobilenetv2-{version}.skb")
        work = str(self.folder / "work")
        return [model, "--weights", weights, *calibration, "--release", str(version), "--work", work, "-o", out, *more]

    def bad_arguments(self) -> list[str]:
        """Release 2: what is careless enough for this CPU to show it."""
        calib = ["photos", "video/carphone_pristine.mp4"]
        if not self.vnni:
            return self.compile_arguments(
                "models/mobilenetv2", 2, calib, "--target", str(ROOT / "demo/releases/careless.toml")
            )
        copy = self.folder / "release2"
        shutil.copytree(ROOT / "models/mobilenetv2", copy, dirs_exist_ok=True)
        recipe = copy / "recipe.toml"
        recipe.write_text(recipe.read_text().replace('color = "rgb"', 'color = "bgr"'))
        return self.compile_arguments(str(copy), 2, calib, "--target", str(ROOT / "demo/releases/fp32.toml"))

    def patient_arguments(self) -> list[str]:
        """Release 3: fp32 alone, since its sin is not in its numbers."""
        copy = self.folder / "release3"
        shutil.copytree(ROOT / "models/mobilenetv2", copy, dirs_exist_ok=True)
        shutil.copy(ROOT / "demo/releases/patient.py", copy)
        target = ("--target", str(ROOT / "demo/releases/fp32.toml"))
        return self.compile_arguments(f"{copy / 'patient.py'}:build", 3, ["photos"], *target)

    def in_background(self, name: str, arguments: list[str]) -> Background:
        return Background(name, arguments)

    def hear(self, name: str, *, everything: bool = True) -> Any:
        """Hears the lines of a program's own output; a chapter shows only so many of the devices' events."""

        def line(text: str) -> None:
            with self._lock:
                if self.ended or (not everything and "INFO rollout" in text):
                    return  # the story shows the decisions itself
                is_event = "#" in text and "update" not in text
                if is_event and self._shown >= SHOWN_PER_CHAPTER:
                    self._hidden += 1
                    return
                self._shown += is_event
            self.console.print(f"[cyan]{name:>5} │[/] [dim]{escape(text)}[/]", soft_wrap=True)

        return line

    def chapter(self, title: str, text: str) -> None:
        with self._lock:
            if self._hidden:
                self.console.print(f"[cyan]      │[/] [dim]… and {self._hidden} events more[/]")
            self._shown = self._hidden = 0
        self.console.print(Rule(title, align="left"))
        self.console.print(text, style="italic")

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", soft_wrap=True)

    def keep(self) -> None:
        """Leaves everything running until Ctrl-C, for looking around."""
        profile = load_profile(self.folder / "hub" / "operator.json")
        self.say(f"it goes on: the page is at {profile.url}/#token={profile.token}")
        self.say("(its certificate is the fleet's own, which your browser does not know). In another terminal:")
        for words in ("devices", "rollout list", "rollout show 3", "events --after 0"):
            self.say(f"SKERRY_HUB={self.folder}/hub/operator.json .venv/bin/skerry fleet {words}")
        self.say("Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


class Background:
    """A compilation beside the story, at low priority so that the devices have the cores they need."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self._name, self._out = name, Path(arguments[arguments.index("-o") + 1])
        self._process = subprocess.Popen(
            ["nice", "-n", "10", *SKERRY, "compile", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self) -> Path:
        """Waits for the bundle."""
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"{self._name} did not compile: {said}")
        return self._out


def main() -> int:
    """Tells the story in a folder that is gone afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave hub and devices running afterwards")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skerry-demo-") as folder, contextlib.ExitStack() as programs:
        story = Story(Path(folder), programs)
        story.tell()
        if options.keep:
            story.keep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
