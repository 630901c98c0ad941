"""A typed client of the hub's API. Every method is one call; every refusal is a `HubError` with the hub's own words."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec
from pydantic import BaseModel
from typing_extensions import Self

from skerry import archive
from skerry.bundle import MAX_EVIDENCE_BYTES, open_file, pack
from skerry.claim import Claim
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import Conflict, HubError, HubUnreachable, NotAllowed, NotFound, UsageError
from skerry.fleet import documents as doc
from skerry.home import config_folder

T = TypeVar("T", bound=BaseModel)

ENVIRONMENT = "SKERRY_HUB"
_TIMEOUT_S = 30.0


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How an operator reaches a hub: its address, the fleet CA's certificate (PEM), an API token."""

    url: str
    ca: str
    token: str


def default_profile(environ: Mapping[str, str]) -> Path:
    """The profile that `skerry fleet` uses unless told otherwise."""
    named = environ.get(ENVIRONMENT)
    return Path(named) if named else config_folder(environ) / "hub.json"


def load_profile(path: Path) -> Profile:
    """Raises `UsageError` if there is none."""
    try:
        return parse(path.read_bytes(), Profile, str(path))
    except OSError as exc:
        raise UsageError(
            f"no hub is known: {path} cannot be read ({exc.strerror}); `skerry hub serve` writes operator.json into "
            f"its data: name that with --hub or ${ENVIRONMENT}"
        ) from exc


class Client:
    """A connection to one hub. Use as a context manager."""

    def __init__(self, profile: Profile) -> None:
        context = ssl.create_default_context(cadata=profile.ca)
        self._http = httpx.Client(
            base_url=profile.url,
            verify=context,
            headers={"authorization": f"Bearer {profile.token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )
        self._url, self._profile = profile.url, profile

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    # Devices

    def health(self) -> doc.Health:
        return self._get("/v1/health", doc.Health)

    def create_claim(self, group: str, uses: int, hours: float, trust: Sequence[str]) -> Claim:
        """A claim token. ``trust`` (PEM) is put into it here: whose bundles devices run is not the hub's to say."""
        made = self._post("/v1/claims", doc.ClaimIn(group=group, uses=uses, hours=hours), doc.ClaimOut)
        return Claim(url=made.url, ca_sha256=made.ca_sha256, secret=made.secret, trust=list(trust))

    def devices(self, group: str | None = None) -> list[doc.Device]:
        return self._list("/v1/devices", doc.Device, {"group": group} if group else {})

    def device(self, word: str) -> doc.Device:
        """By id, the beginning of it, or name."""
        return self._get(f"/v1/devices/{word}", doc.Device)

    def streams(self, device: str) -> list[doc.Stream]:
        return self._list(f"/v1/devices/{device}/streams", doc.Stream)

    def revoke(self, device: str) -> None:
        self._call("DELETE", f"/v1/devices/{device}")

    def clear(self, device: str, release: str) -> None:
        """Takes back the device's rejection of a release."""
        self._call("POST", f"/v1/devices/{device}/clear", doc.ClearIn(release=release))

    def events(self, *, device: str | None = None, after: int = 0, limit: int = 1000) -> doc.Events:
        return self._get("/v1/events", doc.Events, {"device": device, "after": after, "limit": limit})

    # Releases

    def releases(self) -> list[doc.Release]:
        return self._list("/v1/releases", doc.Release)

    def push(self, bundle: Path, scratch: Path, tell: Callable[[int, int], object]) -> doc.Release:
        """Sends a bundle: only the files that the hub does not have.

        Args:
            scratch: a folder for a moment's file, if ``bundle`` is a directory.
            tell: called with the bytes sent so far, and of all.
        """
        if bundle.is_dir():
            packed = scratch / "bundle.skb"
            pack(bundle, packed, Disk())
            return self.push(packed, scratch, tell)
        sizes: dict[str, int] = {}
        digests: dict[str, str] = {}
        with open_file(bundle) as file:
            for member in archive.read(file):
                sha = hashlib.sha256()
                for chunk in member.chunks():
                    sha.update(chunk)
                digests[member.name], sizes[member.name] = sha.hexdigest(), member.size
        signature = digests.get("bundle.sig", "")
        self._send(bundle, {"bundle.sig"}, digests, lambda _: None)
        missing = set(self._post("/v1/releases/missing", doc.MissingIn(signature=signature), doc.MissingOut).missing)
        wanted = {name for name, digest in digests.items() if digest in missing}
        total, sent = sum(sizes[name] for name in wanted), 0

        def count(size: int) -> None:
            nonlocal sent
            sent += size
            tell(sent, total)

        self._send(bundle, wanted, digests, count)
        manifest = digests.get("bundle.json", "")
        return self._post("/v1/releases", doc.ReleaseIn(manifest=manifest, signature=signature), doc.Release)

    def _send(self, bundle: Path, names: set[str], digests: Mapping[str, str], count: Callable[[int], object]) -> None:
        with open_file(bundle) as file:
            for member in archive.read(file):
                if member.name in names:
                    if member.size > MAX_EVIDENCE_BYTES:
                        content: Any = member.chunks()
                    else:
                        content = member.read(MAX_EVIDENCE_BYTES)
                    self._call("PUT", f"/v1/blobs/sha256/{digests[member.name]}", content=content)
                    count(member.size)

    # Rollouts

    def draft(self, wanted: doc.RolloutIn) -> doc.Rollout:
        return self._post("/v1/rollouts", wanted, doc.Rollout)

    def act(self, rollout: int, action: str) -> doc.Rollout:
        """start, pause, resume, take-back or abort."""
        return self._post(f"/v1/rollouts/{rollout}/{action}", None, doc.Rollout)

    def rollouts(self) -> list[doc.RolloutLine]:
        return self._list("/v1/rollouts", doc.RolloutLine)

    def rollout(self, number: int) -> doc.Rollout:
        return self._get(f"/v1/rollouts/{number}", doc.Rollout)

    # Operators

    def create_operator(self, name: str) -> doc.OperatorOut:
        return self._post("/v1/operators", doc.OperatorIn(name=name), doc.OperatorOut)

    def profile_of(self, name: str) -> bytes:
        """Makes an operator; returns the profile (JSON) by which that one reaches the hub."""
        token = self.create_operator(name).token or ""
        return msgspec.json.encode(msgspec.structs.replace(self._profile, token=token))

    def operators(self) -> list[doc.OperatorOut]:
        return self._list("/v1/operators", doc.OperatorOut)

    def remove_operator(self, name: str) -> None:
        self._call("DELETE", f"/v1/operators/{name}")

    # How

    def _get(self, path: str, schema: type[T], query: Mapping[str, Any] | None = None) -> T:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        return schema.model_validate(self._call("GET", path, query=given))

    def _list(self, path: str, schema: type[T], query: Mapping[str, Any] | None = None) -> list[T]:
        return [schema.model_validate(item) for item in self._call("GET", path, query=query)]

    def _post(self, path: str, body: BaseModel | None, schema: type[T]) -> T:
        return schema.model_validate(self._call("POST", path, body))

    def _call(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        content: Any = None,
    ) -> Any:
        try:
            answer = self._http.request(
                method, path, params=query, json=body.model_dump() if body else None, content=content
            )
        except httpx.HTTPError as exc:
            raise HubUnreachable(
                f"no answer from the hub at {self._url}: {exc}; does it run, and is that its address?"
            ) from exc
        if answer.is_success:
            return answer.json() if answer.content else None
        raise _error(answer)


def _error(answer: httpx.Response) -> HubError:
    try:
        detail = str(answer.json()["detail"])
    except (json.JSONDecodeError, KeyError, TypeError):
        detail = f"{answer.status_code} {answer.reason_phrase}"
    kinds: dict[int, type[HubError]] = {401: NotAllowed, 403: NotAllowed, 404: NotFound, 409: Conflict}
    return kinds.get(answer.status_code, HubError)(detail)
