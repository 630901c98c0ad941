"""``skerry agent doctor``: what this box can run, what is wrong with its configuration, and how to mend it.

Looks only: it opens each source for one picture, and starts nothing.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.app import Paths
from edge_agent.config import AgentConfig, ApiConfig, SourceConfig
from edge_agent.gate import EVENT_PICTURE, SAMPLE
from edge_agent.sinks.factory import look
from edge_agent.slots import Slots
from edge_agent.sources import credentials, decoded, files, gstreamer
from edge_agent.sources.address import Kind
from edge_agent.sources.reader import check_source
from edge_agent.sources.readers import credentials_file
from skerry import doctor, signing
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.doctor import Finding
from skerry.errors import SkerryError
from skerry.execution.device import this_device
from skerry.manifest import unsuited

_OF_A_DEVICE = ("skerry", "python", "machine", "agent", "onnxruntime", "disk", "clock")


def examine(load: Callable[[], AgentConfig | None], data: Path) -> Iterator[Finding]:
    """Looks at everything.

    Args:
        load: reads the configuration; None where none was named.
        data: the agent's folder, where no configuration names another.
    """
    yield from (finding for finding in doctor.examine() if finding.what in _OF_A_DEVICE)
    facts = this_device()
    yield Finding("backends", ", ".join(facts.backends) or "none", None if facts.backends else "see agent, above")
    yield _gstreamer()
    try:
        config = load()
    except SkerryError as exc:
        yield Finding("config", "cannot be used", str(exc))
        return
    if config is not None:
        yield Finding("config", f"{len(config.sources)} sources, data in {config.data}")
        data = Path(config.data)
        yield from _keys(config)
        yield from (_source(source, credentials_file(config, data)) for source in config.sources)
        yield from _sinks(config, credentials_file(config, data))
        yield _port(config.api)
    yield from _releases(data)


def _gstreamer() -> Finding:
    try:
        return Finding("gstreamer", f"through {gstreamer.interpreter()}; pipelines: {', '.join(gstreamer.pipelines())}")
    except SkerryError:
        return Finding("gstreamer", 'not here: only a source with reader = "gstreamer" needs it')


def _keys(config: AgentConfig) -> Iterator[Finding]:
    for path in config.trust:
        try:
            signing.load_public_key(Path(path))
        except SkerryError as exc:
            yield Finding("trust", f"{path} is no key", str(exc))
        else:
            yield Finding("trust", path)


def _source(config: SourceConfig, file: Path) -> Finding:
    """Opens it for one picture."""
    name = f"source {config.label}"
    try:
        address = check_source(config)
        secret = credentials.find(config.credentials, file, os.environ) if config.credentials else None
        if address.kind is Kind.PUSH or config.watch:
            return Finding(name, "waits for pictures")
        if address.kind is Kind.FOLDER:
            return Finding(name, f"{len(files.images(Path(address.where)))} images")
        if config.reader == "gstreamer":
            shots = gstreamer.pictures(address, secret, config.pipeline, config.silence_s, drop=True)
            pictures = (shot.frame for shot in shots)
        elif address.kind is Kind.CLIP:
            pictures = (frame for _, frame in files.clip(Path(address.where)))  # type: ignore[misc]
        else:
            pictures = decoded.pictures(address, secret, config.silence_s, SystemClock().monotonic)  # type: ignore[assignment]
        (picture,) = itertools.islice(pictures, 1)
    except (SkerryError, ValueError) as exc:
        return Finding(name, "gives no picture", str(exc))
    return Finding(name, f"gives pictures of {picture.width}x{picture.height}")


def _sinks(config: AgentConfig, file: Path) -> Iterator[Finding]:
    """Whether somebody is there, and whether pictures that are wanted may leave."""
    for name, why in look(config.sinks, file, SystemClock()):
        yield Finding(f"sink {name}", "is there" if why is None else "cannot be used", why)
    wanted = {EVENT_PICTURE: config.events.picture not in (False, []), SAMPLE: config.sampling.wanted}
    for way in (way for way, asked in wanted.items() if asked and way not in config.privacy.allow):
        yield Finding("privacy", f"{way} is wanted and not allowed", f'add "{way}" to allow in [privacy]')


def _port(api: ApiConfig) -> Finding:
    with socket.socket() as spot:
        spot.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            spot.bind((api.bind, api.port))
        except OSError as exc:
            return Finding(
                "port",
                f"{api.port}: {exc.strerror}",
                "stop what listens there (an agent that runs?), or name another port",
            )
    return Finding("port", f"{api.port or 'any'} is free")


def _releases(data: Path) -> Iterator[Finding]:
    """What lies on the disk, and which of its variants suit this box."""
    slots, facts = Slots(Paths(data).slots, Disk(), []), this_device()
    for folder in sorted(path for path in Paths(data).slots.glob("*") if path.is_dir() and len(path.name) == 64):
        try:
            manifest = slots.manifest(folder.name)
        except (OSError, SkerryError) as exc:
            yield Finding("release", f"{folder.name[:12]} cannot be read", str(exc))
            continue
        over = unsuited(manifest, facts)
        suits = [variant.id for variant in manifest.variants if variant.id not in over]
        left = "".join(f"; {variant} {why}" for variant, why in over.items())
        mend = None if suits else "compile it for this box: skerry targets"
        yield Finding(
            "release", f"{manifest.name}@{manifest.version}: {', '.join(suits) or 'nothing'} suits{left}", mend
        )
