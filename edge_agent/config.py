"""What an agent is told: one frozen object, from ``agent.toml`` or the command line's options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from skerry.config import convert, read_toml
from skerry.errors import ConfigError
from skerry.manifest import FLOOR, Fraction, Limits, Positive, tighter

Seconds = Annotated[float, msgspec.Meta(gt=0.0)]


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One camera, video file, folder of images, or door for pictures that are pushed.

    Attributes:
        url: ``rtsp://host/path``, ``/dev/video0``, ``csi:0``, a file, a folder, or ``push:``. Never with a password.
        credentials: name of the camera's user and password (edge_agent.sources.credentials).
        policy: "latest" keeps the newest frame and counts the rest as superseded; "every" answers each frame, or says
            that there is no verdict on it: a file waits for its turn, a camera's frame fails when the queue is full.
        reader: "pyav" decodes in this process, "gstreamer" in another one, with the hardware that ``pipeline`` names.
        silence_s: a camera that gives no frame for so long is lost, and opened again.
        watch: of a folder, the images that come from now on, instead of those that lie there.
        realtime: plays a file at its own rate; without it, as fast as it can be read.
        loop: starts over at the end.
        queue: policy "every": frames that may wait.
        deadline_ms: policy "every": a frame that is not answered by then has no verdict; null waits for ever.
    """

    url: str
    name: str | None = None
    credentials: str | None = None
    policy: Literal["latest", "every"] = "latest"
    reader: Literal["pyav", "gstreamer"] = "pyav"
    pipeline: str = "software"
    silence_s: Annotated[float, msgspec.Meta(ge=0.5, le=3600.0)] = 2.0
    watch: bool = False
    realtime: bool = True
    loop: bool = False
    queue: Positive = 8
    deadline_ms: Positive | None = None

    @property
    def label(self) -> str:
        return self.name or Path(self.url).name or "push"


class EventsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which answers become events, and where those go.

    Attributes:
        when: "change" tells when the set of labels seen changes, "every" tells every frame.
        min_score: answers below it are not told.
        jsonl: a file that gets every event, once, in order.
        terminal: whether events are printed.
        max_mib: what the outbox may hold; the oldest go first, and the next batch says so.
        sync_ms: how long an event may wait for the disk.
    """

    when: Literal["change", "every"] = "change"
    min_score: Fraction = 0.3
    jsonl: str | None = None
    terminal: bool = True
    max_mib: Positive = 64
    sync_ms: Annotated[int, msgspec.Meta(ge=1, le=200)] = 200


class Mask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An area that no picture of a source ever shows.

    Attributes:
        source: its name; "*" for all.
        polygon: corners (x, y), as fractions of the frame's width and height.
    """

    source: str = "*"
    polygon: list[tuple[Fraction, Fraction]]


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent's HTTP interface (edge_agent.api).

    Attributes:
        bind: the address to listen on; any other than a loopback one needs a token.
        port: 0 takes a free one.
        token_file: one line, at least 16 characters, readable by its owner only; whoever asks must send it.
        names: host names that requests may name besides the address itself.
    """

    bind: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    token_file: str | None = None
    names: list[str] = []


class PrivacyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may leave the device as a picture. Nothing, unless it is allowed here.

    Attributes:
        allow: ways out: "live-view", "snapshot", "event-picture", "sample" (to train with).
        masks: areas that are black in all that leaves.
        blur: labels whose boxes are made coarse.
        drop: labels of which no picture leaves.
    """

    allow: list[str] = []
    masks: list[Mask] = []
    blur: list[str] = []
    drop: list[str] = []


class ProofPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this device asks of a proof. Limits may be tighter than Skerry's floor, never looser."""

    limits: Limits = FLOOR
    timeout_s: Seconds = 120.0
    memory_mib: Positive = 1024


class ProbationPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new release must show on live frames before it is kept.

    Attributes:
        seconds: how long it is watched; silence does not count, so a dead camera prolongs it.
        min_frames: how many frames it must have processed by then.
        max_failed: share of its frames that may fail.
        max_more_superseded: how much larger a share of the frames it may let go by than the release before it did.
        stall_s: a frame that takes this long ends the probation, and the process with it.
    """

    seconds: Seconds = 60.0
    min_frames: Positive = 50
    max_failed: Fraction = 0.01
    max_more_superseded: Fraction = 0.1
    stall_s: Seconds = 10.0


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an enrolled device speaks to its hub.

    Attributes:
        report_s: how often it says how it fares; what changes it says at once.
        keepalive_s: a connection that is silent for so long, and does not answer then, is given up.
        ack_s: events that were not acknowledged for so long are sent again.
        longest_pause_s: between attempts to connect; the first is a second.
    """

    report_s: Seconds = 30.0
    keepalive_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 20
    ack_s: Seconds = 20.0
    longest_pause_s: Seconds = 60.0


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything.

    Attributes:
        data: the directory that holds all that the agent must not lose.
        trust: PEM files of the keys whose bundles may run here; without any, those that the claim token named, or this
            user's own.
        credentials: TOML file with the cameras' passwords; by default ``credentials.toml`` in ``data``.
        threads: for inference; the other cores decode and sync.
        stop_s: how long an ordered stop may take.
    """

    data: str
    trust: list[str] = []
    sources: list[SourceConfig] = []
    credentials: str | None = None
    events: EventsConfig = EventsConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    api: ApiConfig = ApiConfig()
    proof: ProofPolicy = ProofPolicy()
    probation: ProbationPolicy = ProbationPolicy()
    link: LinkConfig = LinkConfig()
    threads: Positive = max(1, (os.cpu_count() or 1) // 2)
    stop_s: Seconds = 10.0


def load(path: Path, overrides: dict[str, Any]) -> AgentConfig:
    """Reads ``agent.toml``; ``overrides`` from the command line win, key by key."""
    values = read_toml(path)
    for key, value in overrides.items():
        before = values.get(key)
        values[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return check(values, str(path))


def check(values: dict[str, Any], origin: str) -> AgentConfig:
    """Raises `ConfigError` that names the key."""
    config = convert(values, AgentConfig, origin)
    if tighter(config.proof.limits, FLOOR) != config.proof.limits:
        raise ConfigError(f"{origin}: proof.limits may be tighter than {FLOOR}, not looser")
    labels = [source.label for source in config.sources]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"{origin}: two sources have one name: {', '.join(labels)}; give each a name")
    return config
