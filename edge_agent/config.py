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
Duration = Annotated[float, msgspec.Meta(ge=0.0)]


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
        picture: whether what was seen is told with a picture; or the labels of which it is.
        min_score: answers below it are not told.
        jsonl: a file that gets every event, once, in order.
        terminal: whether events are printed.
        max_mib: what the outbox may hold; the oldest go first, and the next batch says so.
        sync_ms: how long an event may wait for the disk.
    """

    when: Literal["change", "every"] = "change"
    min_score: Fraction = 0.3
    picture: bool | list[str] = False
    jsonl: str | None = None
    terminal: bool = True
    max_mib: Positive = 64
    sync_ms: Annotated[int, msgspec.Meta(ge=1, le=200)] = 200


class MqttConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A broker that gets every event.

    Attributes:
        url: ``mqtt://host:port`` or ``mqtts://host:port``. Never with a password.
        topic: below which everything is published; a device's own where several share a broker.
        credentials: name of its user and password (edge_agent.sources.credentials).
        ca: PEM file of who certifies the broker; by default, whom the system trusts.
        picture: whether an event's picture is in its message.
        home_assistant: the prefix under which Home Assistant looks for new things, as a rule "homeassistant".
    """

    url: str
    topic: str = "skerry"
    credentials: str | None = None
    ca: str | None = None
    picture: bool = False
    home_assistant: str | None = None
    keepalive_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 20


class WebhookConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A web server that gets every event, one a request.

    Attributes:
        url: ``https://…`` or ``http://…``. Never with a password.
        credentials: name of the secret that signs (edge_agent.sources.credentials: its password).
        ca: PEM file of who certifies the server; by default, whom the system trusts.
        timeout_s: for the connection and for each part of the answer.
        tries: after so many refusals (4xx) of one event it is left out, and counted.
        picture: whether an event's picture is in its request.
    """

    url: str
    credentials: str | None = None
    ca: str | None = None
    timeout_s: Seconds = 10.0
    tries: Positive = 5
    picture: bool = False


class SinksConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Receivers of events beside the file, the terminal and the hub."""

    mqtt: MqttConfig | None = None
    webhook: WebhookConfig | None = None


class PicturesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pictures of events (``events.picture``), of which ``privacy.allow`` must name "event-picture".

    Attributes:
        max_mib: that are kept; the oldest go first.
        quality: of the JPEG, as Pillow counts it.
        longest: pixels of the longer side; larger ones are made smaller.
        upload: whether a hub gets them.
    """

    max_mib: Positive = 256
    quality: Annotated[int, msgspec.Meta(ge=1, le=95)] = 80
    longest: Annotated[int, msgspec.Meta(ge=16, le=16384)] = 1280
    upload: bool = True


class SamplingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard frames, kept to train with; ``privacy.allow`` must name "sample". None are, by default.

    Attributes:
        band: a frame is uncertain if its answer is: a score in this band (edge_agent.sampling).
        margin: or, of a whole frame's labels, if the first is less than this before the second.
        drift: a source drifts if what is seen is this far from what this release saw there before (PSI).
        random: share of all frames.
        apart_s: between two samples of one source, but for random ones.
        per_hour, per_day: samples in any hour, and in any day, at most.
        mib_per_hour, mib_per_day: the same in bytes.
        max_mib: that are kept; the oldest go first.
        upload: whether a hub gets them.
    """

    band: tuple[Fraction, Fraction] | None = None
    margin: Fraction | None = None
    drift: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    random: Fraction = 0.0
    apart_s: Annotated[float, msgspec.Meta(ge=0.0)] = 10.0
    per_hour: Positive = 60
    per_day: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 500
    mib_per_hour: Positive = 32
    mib_per_day: Positive = 256
    max_mib: Positive = 512
    quality: Annotated[int, msgspec.Meta(ge=1, le=95)] = 92
    upload: bool = False

    @property
    def wanted(self) -> bool:
        """Whether anything is sampled at all."""
        return self.band is not None or self.margin is not None or self.drift is not None or self.random > 0


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


class TrackingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How boxes become things that keep a number (edge_agent.rules.tracker).

    Attributes:
        lost_s: how long a thing may be out of sight and still be the same.
        blind_s: a camera that gave no picture for so long comes back to another scene: every thing is new.
        start_score: a thing begins with a box of this score at least; one that has begun is followed below it.
        keep_score: boxes below it are ignored.
    """

    lost_s: Seconds = 1.0
    blind_s: Seconds = 30.0
    start_score: Fraction = 0.5
    keep_score: Fraction = 0.1


Point = tuple[Fraction, Fraction]
Anchor = Literal["foot", "middle"]


class ZoneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An area that things enter and leave (edge_agent.rules.zones).

    Attributes:
        source: whose pictures it lies on; "*" for all, each with a count of its own.
        polygon: corners (x, y), as fractions of the frame's width and height.
        labels: what counts; empty: everything.
        min_score: a thing counts once it was seen with this score.
        anchor: the point of a box that is in or out: "foot", the middle of its lower side, or "middle".
        enter_s: a thing that is inside for so long has entered.
        leave_s: one that is outside for so long has left.
        dwell_s: one that stays so long is told of once a stay; null tells of none.
    """

    name: str
    source: str = "*"
    polygon: list[Point]
    labels: list[str] = []
    min_score: Fraction = 0.0
    anchor: Anchor = "foot"
    enter_s: Duration = 0.5
    leave_s: Duration = 0.5
    dwell_s: Seconds | None = None


class LineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line that things cross, counted in both directions (edge_agent.rules.lines).

    Attributes:
        source, labels, min_score, anchor: as of a zone.
        begin, end: its ends (x, y); in TOML ``from`` and ``to``. Over a line from the top to the bottom, forward is
            from the picture's left to its right; a line that is turned turns its directions along.
        settle_s: a crossing counts when the thing has stayed on the other side for so long.
    """

    name: str
    source: str = "*"
    begin: Point = msgspec.field(name="from")
    end: Point = msgspec.field(name="to")
    labels: list[str] = []
    min_score: Fraction = 0.0
    anchor: Anchor = "foot"
    settle_s: Duration = 0.2


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
        tracking: null follows nothing, unless there are zones or lines.
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
    sinks: SinksConfig = SinksConfig()
    pictures: PicturesConfig = PicturesConfig()
    sampling: SamplingConfig = SamplingConfig()
    tracking: TrackingConfig | None = None
    zones: list[ZoneConfig] = []
    lines: list[LineConfig] = []
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
    _check_places(config, origin)
    return config


def _check_places(config: AgentConfig, origin: str) -> None:
    """Zones and lines that could never count, or not be told apart."""
    sources = {source.label for source in config.sources}
    for kind, places in (("zones", config.zones), ("lines", config.lines)):
        names = [place.name for place in places]
        if len(set(names)) != len(names):
            raise ConfigError(f"{origin}: two {kind} have one name: {', '.join(names)}; give each its own")
        for place in places:
            if place.source != "*" and place.source not in sources:
                known = ", ".join(sorted(sources)) or "none"
                raise ConfigError(f'{origin}: {kind}: {place.name} is of "{place.source}"; the sources are: {known}')
    for zone in config.zones:
        if len(set(zone.polygon)) < 3:
            raise ConfigError(f"{origin}: zones: {zone.name} has {len(set(zone.polygon))} corners; an area has 3")
    for line in config.lines:
        if line.begin == line.end:
            raise ConfigError(f"{origin}: lines: {line.name} begins where it ends, at {line.begin}; give it a length")
