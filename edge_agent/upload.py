"""Pictures on their way to the hub: one at a time, oldest first; what the hub has not got waits on the disk."""

from __future__ import annotations

import functools
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import anyio.to_thread

from edge_agent.https import request
from edge_agent.hub_client import token
from edge_agent.identity import Identity
from edge_agent.pictures import Kept, Pictures
from skerry.backoff import Backoff
from skerry.clock import Clock
from skerry.errors import HubError, StorageError, Unacceptable

_log = logging.getLogger(__name__)

_LOOK_S = 1.0
_SAVE_S = 5.0


@dataclass
class Way:
    """Pictures of one kind, and what became of them since the start.

    Attributes:
        kind: "pictures" or "samples": a part of the hub's address.
    """

    kind: str
    pictures: Pictures
    sent: int = 0
    refused: int = 0


class Upload:
    """Brings pictures to the hub. `run` never returns."""

    def __init__(
        self, identity: Identity, ways: list[Way], clock: Clock, uniform: Callable[[float, float], float]
    ) -> None:
        self._identity, self._ways, self._clock = identity, ways, clock
        self._context = ssl.create_default_context(cafile=str(identity.ca))
        self._backoff = Backoff(1.0, 60.0, uniform)
        self.failing: str | None = None

    async def run(self) -> None:
        """Sends what there is, and looks again."""
        save_at = self._clock.monotonic() + _SAVE_S
        while True:
            pause_s = _LOOK_S
            for way in self._ways:
                if (kept := way.pictures.oldest()) is not None:
                    pause_s = await self._try(way, kept)
                    break
            if self._clock.monotonic() >= save_at:
                await anyio.to_thread.run_sync(self._save)
                save_at = self._clock.monotonic() + _SAVE_S
            await self._clock.wait(pause_s)

    async def _try(self, way: Way, kept: Kept) -> float:
        """Sends one; how long to wait for the next."""
        try:
            way.sent += await anyio.to_thread.run_sync(self._send, way, kept, abandon_on_cancel=True)
        except Unacceptable as exc:
            _log.error("the hub refuses a picture, it is left out: %s", exc)
            way.refused += 1
        except HubError as exc:
            if self.failing is None:
                _log.warning("pictures wait for the hub: %s", exc)
            self.failing = str(exc)
            return self._backoff.pause_s()
        if self.failing is not None:
            _log.info("pictures go to the hub again; %d wait", sum(w.pictures.waiting for w in self._ways))
        self.failing = None
        self._backoff.worked()
        way.pictures.sent(kept.number)
        return 0.0

    def _send(self, way: Way, kept: Kept) -> bool:
        """Whether it was still there. The picture first: what stands beside it means nothing without it."""
        at = f"/v1/devices/{self._identity.device}/{way.kind}/{kept.sha256}"
        raw, beside = way.pictures.read(kept.sha256), way.pictures.beside(kept.sha256)
        if raw is None:
            return False  # it went meanwhile
        put = functools.partial(request, self._identity.hub.url, "PUT", context=self._context)
        put(path=at, body=raw, token=token(self._identity, self._clock), kind="image/jpeg")
        if beside is not None:
            put(path=f"{at}/answers", body=beside, token=token(self._identity, self._clock))
        return True

    def _save(self) -> None:
        for way in self._ways:
            try:
                way.pictures.save()
            except StorageError as exc:
                _log.error("what was sent is not remembered, and may be sent again: %s", exc)

    def close(self) -> None:
        """Remembers what was sent."""
        self._save()
