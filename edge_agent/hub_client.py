"""Fetches releases from the hub, by digest, with the device's own key."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence

import anyio.from_thread
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent.https import download, request
from edge_agent.identity import Identity
from edge_agent.slots import Slots
from skerry.bundle import MAX_SIGNATURE_BYTES, Bundle, Choose, gather
from skerry.claim import JWT_AUDIENCE, JWT_SECONDS
from skerry.clock import Clock
from skerry.documents import parse
from skerry.errors import TooLarge
from skerry.manifest import MAX_BYTES


class _Release(msgspec.Struct):
    id: str
    signature: str


def token(identity: Identity, clock: Clock) -> str:
    """Says who asks, for a minute."""
    now = clock.utc().ms // 1000
    claims = {"sub": identity.device, "aud": JWT_AUDIENCE, "iat": now, "exp": now + JWT_SECONDS}
    return jwt.encode(claims, identity.key, algorithm="ES256")


class HubFetcher:
    """A `Fetcher` that asks the hub. Runs in a worker thread of the event loop, and ends when its task is cancelled."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity, self._clock = identity, clock
        self._context = ssl.create_default_context(cafile=str(identity.ca))

    def fetch(self, release: str, slots: Slots, choose: Choose) -> None:
        def take(trusted: Sequence[ec.EllipticCurvePublicKey], keep: Callable[[str, Iterable[bytes]], None]) -> Bundle:
            raw = request(self._url, "GET", f"/v1/releases/{release}", self._context, token=self._token())
            known = parse(raw, _Release, "the hub's answer about a release")
            manifest = self._document(release, MAX_BYTES)
            signature = self._document(known.signature, MAX_SIGNATURE_BYTES)
            return gather(manifest, signature, self._blob, trusted, keep, choose)

        slots.take(release, take)

    def done(self, release: str) -> None:
        """The hub keeps it."""

    @property
    def _url(self) -> str:
        return self._identity.hub.url

    def _blob(self, digest: str) -> Iterator[bytes]:
        return download(self._url, f"/v1/blobs/sha256/{digest}", self._context, self._token, self._wait)

    def _document(self, digest: str, limit: int) -> bytes:
        raw = b""
        for chunk in self._blob(digest):
            raw += chunk
            if len(raw) > limit:
                raise TooLarge(f"sha256:{digest} has more than the {limit} bytes that such a document may have")
        return raw

    def _token(self) -> str:
        return token(self._identity, self._clock)

    def _wait(self, seconds: float) -> None:
        """Between two chunks or attempts; ends the download if the wish has changed."""
        anyio.from_thread.check_cancelled()
        if seconds:
            anyio.from_thread.run(self._clock.wait, seconds)
