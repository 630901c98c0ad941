"""What the agent costs a frame, from the encoded frame to the event in the log, against the bare loop under it.

The bare loop is what one writes in an afternoon: PyAV decodes, the same numpy pre-processing, an ONNX Runtime session
with the same options, the best class. The agent's side is its own reader, mailbox, worker, rules and outbox, with an
event for every frame and the group sync running beside. Both play the same video at its own rate, in turn, in one
process, with the same variant and one thread:

    frame time = time to decode it + time from then until its answer (bare) or its event is in the log (agent)

Each round plays bare, agent, bare; a ratio compares medians of one round, and the two bare ones are the A/A control.
The wait for the sync, at most 200 ms by design, is printed apart: it delays what is promised, not the next frame.
"""

from __future__ import annotations

import contextlib
import random
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.release import VIDEO, unpacked
from benchmarks.results import Row, ratio, tell
from edge_agent.config import EventsConfig, SourceConfig
from edge_agent.events import Events
from edge_agent.mailbox import Captured, Mailbox
from edge_agent.outbox import Outbox
from edge_agent.sinks.delivery import Delivery
from edge_agent.sources import files
from edge_agent.sources.reader import Reader
from edge_agent.vision import ActiveModel, Worker
from skerry.clock import SystemClock, new_id
from skerry.disk import Disk
from skerry.execution.backend import load_variant
from skerry.execution.frames import open_video, pixels
from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.execution.processing import Preprocessor, make_decoder
from skerry.manifest import Manifest
from skerry.wire import Answer

ROUNDS = 4
AIM = 1.02


@dataclass
class Played:
    """One play of the video.

    Attributes:
        decoded: seconds to decode each frame.
        answered: seconds from the decoded frame to its answer or event.
        durable: seconds from the decoded frame until its event was synced.
        cpu_s: of the whole process.
    """

    decoded: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def median(self) -> float:
        return statistics.median(d + a for d, a in zip(self.decoded, self.answered, strict=True))


def cpu_s() -> float:
    """CPU time of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(frames: Iterator, decoded: list[float]) -> Iterator:
    """Passes frames on and notes how long each took to come."""
    while True:
        started = time.monotonic()
        frame = next(frames, None)
        if frame is None:
            return
        decoded.append(time.monotonic() - started)
        yield frame


class Bare:
    """The loop without an agent."""

    def __init__(self, model: Path, manifest: Manifest) -> None:
        self._session = ort.InferenceSession(model, session_options(1), providers=[PROVIDER])
        self._input, self._preprocess = manifest.inputs[0].name, Preprocessor(manifest)
        self._tensor = np.zeros(manifest.inputs[0].shape, np.float32)

    def play(self) -> Played:
        played, before = Played(), cpu_s()
        with open_video(VIDEO) as video:
            opened = time.monotonic()
            for number, frame in enumerate(timed(video.frames(), played.decoded)):
                time.sleep(max(0.0, opened + number / video.rate - time.monotonic()))
                started = time.monotonic()
                self._preprocess(pixels(frame), self._tensor)
                (scores,) = self._session.run(None, {self._input: self._tensor})
                int(np.argmax(scores))
                played.answered.append(time.monotonic() - started)
        played.cpu_s = cpu_s() - before
        return played


class TimedOutbox(Outbox):
    """Tells when a sync has made events durable."""

    on_sync: Callable[[int], None] = staticmethod(lambda _last: None)

    def sync(self) -> int:
        last = super().sync()
        self.on_sync(last)
        return last


class WholeAgent:
    """The agent's own parts, as its composition root puts them together, without updates."""

    def __init__(self, root: Path, manifest: Manifest, variant: str, folder: Path) -> None:
        self._root, self._manifest, self._variant, self._folder = root, manifest, variant, folder
        self._clock = SystemClock()

    def play(self) -> Played:
        played, captured = Played(), []
        config = EventsConfig(when="every", min_score=0.0, terminal=False)
        outbox = TimedOutbox(self._folder, Disk(), config.max_mib << 20, new_id)
        first = outbox.accepted

        def synced(last: int) -> None:
            now = time.monotonic()
            played.durable += [now - at for at in captured[len(played.durable) : last - first]]

        class Timed(Events):
            def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
                captured.append(frame.mono_s)
                super().seen(frame, release, answers)
                played.answered.append(time.monotonic() - frame.mono_s)

        outbox.on_sync = synced
        mailbox, ended = Mailbox(), threading.Event()
        with Delivery(outbox, [], self._clock, config.sync_ms / 1000) as delivery:
            events = Timed(config, outbox, self._clock, delivery.wake)
            with Worker(mailbox, events, self._clock, 5.0) as worker, timing(played.decoded):
                worker.swap(self._model())
                source, pick = SourceConfig(url=str(VIDEO)), random.Random(0).uniform
                reader = Reader(source, None, mailbox, self._clock, events, lambda _label: ended.set(), pick)
                before = cpu_s()
                reader.start()
                ended.wait()
                while mailbox.total().waiting:
                    time.sleep(0.01)
                played.cpu_s = cpu_s() - before
        return played

    def _model(self) -> ActiveModel:
        manifest = self._manifest
        backend = load_variant(self._root, manifest, manifest.variant(self._variant), threads=1)
        return ActiveModel("0" * 64, self._variant, backend, Preprocessor(manifest), make_decoder(manifest))


@contextlib.contextmanager
def timing(decoded: list[float]) -> Iterator[None]:
    """Notes how long the reader's frames take to decode."""
    plain = files.clip
    files.clip = lambda path: timed(plain(path), decoded)
    try:
        yield
    finally:
        files.clip = plain


def main() -> bool:
    """Measures and tells; whether the bar was met."""
    root, manifest = unpacked()
    variant = min(manifest.variants, key=lambda v: v.precision != "fp32")
    bare = Bare(root / variant.model, manifest)
    with tempfile.TemporaryDirectory() as folder:
        agent = WholeAgent(root, manifest, variant.id, Path(folder) / "outbox")
        bare.play(), agent.play()  # caches, buffers, the processor's speed
        rounds = [(bare.play(), agent.play(), bare.play()) for _ in range(ROUNDS)]
    first, agents, second = ([r[i] for r in rounds] for i in range(3))
    around = [(a.median() + b.median()) / 2 for a, b in zip(first, second, strict=True)]
    whole = [played.median() for played in agents]
    control = abs(ratio([p.median() for p in second], [p.median() for p in first]) - 1)
    cpu = ratio([p.cpu_s for p in agents], [(a.cpu_s + b.cpu_s) / 2 for a, b in zip(first, second, strict=True)])
    waits = sorted(at for played in agents for at in played.durable)
    frames = len(agents[0].answered)
    return tell(
        "overhead",
        [
            Row("frame time, agent / bare", ratio(whole, around), "x", AIM + control, f"p50 of {frames} frames a play"),
            Row("A/A control: bare / bare, off by", control, "", None, f"{ROUNDS} rounds"),
            Row("CPU time, agent / bare", cpu, "x", None, "whole process, threads and syncs included"),
            Row("frame time, bare", statistics.median(around) * 1e3, "ms", None, "p50, on this machine"),
            Row("frame time, agent", statistics.median(whole) * 1e3, "ms", None, "p50, event in the log"),
            Row("until durable", statistics.median(waits) * 1e3, "ms", None, "p50, group sync of at most 200 ms"),
            Row("until durable, p99", waits[int(len(waits) * 0.99)] * 1e3, "ms"),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
