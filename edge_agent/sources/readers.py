"""All sources of an agent: begun, ended and exchanged while it runs. Belongs to the event loop's thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import anyio.to_thread

from edge_agent.config import AgentConfig, SourceConfig
from edge_agent.mailbox import Mailbox
from edge_agent.sources import credentials
from edge_agent.sources.credentials import Credentials
from edge_agent.sources.reader import Reader, Tell, check_source
from skerry.clock import Clock

_STOPPED = "the agent stopped before its turn came"
_TAKEN_AWAY = "its source was taken away before its turn came"


class Readers:
    """The readers, by source.

    Args:
        uniform: a random number between two.
    """

    def __init__(self, mailbox: Mailbox, clock: Clock, tell: Tell, uniform: Callable[[float, float], float]) -> None:
        self._mailbox, self._clock, self._tell, self._uniform = mailbox, clock, tell, uniform
        self._readers: dict[str, Reader] = {}
        self._open: set[str] = set()

    @property
    def ended(self) -> bool:
        """Every source has come to its end by itself."""
        return bool(self._readers) and not self._open

    def failing(self) -> Mapping[str, str | None]:
        """Why each source cannot be read just now, or is not to be believed."""
        return {label: reader.failing for label, reader in self._readers.items()}

    def lost_for_good(self) -> str | None:
        """Why a source ended before its end."""
        return next((why for reader in self._readers.values() if (why := reader.lost_for_good) is not None), None)

    def pushed(self, label: str) -> Reader | None:
        """The source of that name whose pictures are pushed; None if there is none."""
        reader = self._readers.get(label)
        return reader if reader is not None and reader.pushed else None

    def add(self, configs: Sequence[SourceConfig], secrets: Mapping[str, Credentials]) -> None:
        """Makes readers of sources that `check` has looked at; `start` starts them.

        Args:
            secrets: what `check` gave.
        """
        for config in configs:
            label, secret = config.label, secrets.get(config.credentials or "")
            self._open.add(label)
            ended = self._open.discard
            self._readers[label] = Reader(config, secret, self._mailbox, self._clock, self._tell, ended, self._uniform)

    def start(self, labels: Iterable[str] | None = None) -> None:
        """Starts some, or all."""
        for label in self._readers if labels is None else labels:
            self._readers[label].start()

    async def remove(self, labels: Sequence[str], limit_s: float) -> None:
        """Ends sources, and waits for their threads; what waits of theirs is counted and told."""
        gone = [self._readers.pop(label) for label in labels]
        for reader in gone:
            reader.stop()
            self._open.discard(reader.label)
            for frame in self._mailbox.remove_source(reader.label):
                self._tell.no_verdict(frame.source, frame, _TAKEN_AWAY)
        for reader in gone:
            await anyio.to_thread.run_sync(reader.join, limit_s)

    async def stop(self, limit_s: float) -> None:
        """Ends all; the mailbox takes nothing more."""
        for reader in self._readers.values():
            reader.stop()
        for frame in self._mailbox.close():
            self._tell.no_verdict(frame.source, frame, _STOPPED)
        for reader in self._readers.values():
            await anyio.to_thread.run_sync(reader.join, limit_s)


def check(configs: Sequence[SourceConfig], file: Path) -> dict[str, Credentials]:
    """Looks at sources before anything starts; the passwords that they name.

    Raises:
        SourceError, ConfigError: as `check_source` and `credentials.find`.
    """
    for config in configs:
        check_source(config)
    return {name: credentials.find(name, file, os.environ) for c in configs if (name := c.credentials) is not None}


def credentials_file(config: AgentConfig, data: Path) -> Path:
    """Where the passwords are."""
    return Path(config.credentials) if config.credentials else data / credentials.FILE
