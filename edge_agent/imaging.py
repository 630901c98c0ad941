"""All that makes and keeps pictures, put together: of events, and of frames to train with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_agent.config import AgentConfig
from edge_agent.darkroom import Darkroom, EventPictures
from edge_agent.gate import Gate
from edge_agent.identity import Identity
from edge_agent.pictures import Pictures
from edge_agent.samples import Sampler, Tools
from edge_agent.status import PicturesStatus
from edge_agent.upload import Upload, Way
from edge_agent.vision import Emit
from skerry.clock import Clock
from skerry.disk import Disk


class Imaging:
    """Made by the composition root.

    Args:
        uniform: a random number between two.

    Attributes:
        darkroom: a context manager; entered before the worker starts.
        emits: who must hear of every answered frame.
        upload: set by `to_hub`, if a hub gets pictures.
    """

    def __init__(
        self,
        config: AgentConfig,
        gate: Gate,
        darkroom: Darkroom,
        data: Path,
        disk: Disk,
        clock: Clock,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._config, self.darkroom, self._clock, self._uniform = config, darkroom, clock, uniform
        self.pictures = Pictures(data / "pictures", disk, config.pictures.max_mib << 20)
        self.event_pictures = EventPictures(darkroom, gate, self.pictures, config.pictures)
        self._ways = [Way("pictures", self.pictures)]
        self._sampler: Sampler | None = None
        if config.sampling.wanted:
            samples = Pictures(data / "samples", disk, config.sampling.max_mib << 20)
            ledger = data / "samples" / "ledger"
            tools = Tools(darkroom, samples, ledger, disk, clock, lambda: uniform(0.0, 1.0))
            self._sampler = Sampler(config.sampling, gate, tools)
            self._ways.append(Way("samples", samples))
        self.upload: Upload | None = None

    @property
    def emits(self) -> list[Emit]:
        return [self._sampler] if self._sampler is not None else []

    def to_hub(self, identity: Identity | None) -> None:
        """Sends what may be sent to the hub from now on."""
        wanted = {"pictures": self._config.pictures.upload, "samples": self._config.sampling.upload}
        ways = [way for way in self._ways if wanted[way.kind]]
        if identity is not None and ways:
            self.upload = Upload(identity, ways, self._clock, self._uniform)

    def obey(self, gate: Gate) -> None:
        """Another policy holds from now on."""
        self.event_pictures.gate = gate
        if self._sampler is not None:
            self._sampler.gate = gate

    def status(self) -> dict[str, PicturesStatus]:
        """How pictures fare, by kind."""
        first, *more = self._ways
        found = {first.kind: self.event_pictures.status(first.sent, first.refused)}
        for way in more:
            if self._sampler is not None:
                found[way.kind] = self._sampler.status(way.sent, way.refused)
        return found

    def close(self) -> None:
        """Remembers what was sent."""
        if self.upload is not None:
            self.upload.close()
