"""HTTPS as a device needs it: a request with a small answer, and a download that goes on where it was cut off."""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from collections.abc import Callable, Iterator

import msgspec

from skerry.documents import parse
from skerry.errors import FormatError, HubError, HubUnreachable, NotAllowed, NotFound, Unacceptable

_TIMEOUT_S = 20.0
_MAX_ANSWER = 8 << 20
_CHUNK = 64 << 10
_PATIENCE = 5  # times that a download may break off without a byte between

_FAILURES = (OSError, http.client.HTTPException)
_REFUSALS: dict[int, type[HubError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    413: Unacceptable,
    422: Unacceptable,
}


class _Problem(msgspec.Struct):
    detail: str


def request(
    url: str,
    method: str,
    path: str,
    context: ssl.SSLContext,
    *,
    body: bytes | None = None,
    token: str | None = None,
    kind: str = "application/json",
) -> bytes:
    """One request, with a body of a media type; its answer.

    Raises:
        HubUnreachable: no answer.
        NotAllowed, NotFound, Unacceptable, HubError: the hub refused, in its words.
    """
    connection = _connect(url, context)
    try:
        headers = _headers(token) | ({"content-type": kind} if body is not None else {})
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        raw = answer.read(_MAX_ANSWER + 1)
    except _FAILURES as exc:
        raise HubUnreachable(f"no answer from the hub at {url}: {exc or type(exc).__name__}") from exc
    finally:
        connection.close()
    if answer.status >= 300:
        raise _refusal(answer.status, raw)
    if len(raw) > _MAX_ANSWER:
        raise HubError(f"the hub's answer at {path} has more than {_MAX_ANSWER} bytes")
    return raw


def download(
    url: str, path: str, context: ssl.SSLContext, token: Callable[[], str], wait: Callable[[float], object]
) -> Iterator[bytes]:
    """The bytes at ``path``, as they come; a connection that breaks off is taken up where it broke.

    Args:
        wait: waits so many seconds between attempts; may raise to end it.

    Raises:
        HubUnreachable: it broke off again and again, and nothing came between.
        NotAllowed, NotFound, HubError: the hub refused.
    """
    offset, failures = 0, 0
    while True:
        try:
            for chunk in _part(url, path, context, token(), offset):
                offset, failures = offset + len(chunk), 0
                yield chunk
                wait(0.0)
        except _FAILURES as exc:
            failures += 1
            if failures >= _PATIENCE:
                raise HubUnreachable(
                    f"{url}{path} broke off after {offset} bytes: {exc or type(exc).__name__}"
                ) from exc
            wait(min(2.0**failures, 30.0))
        else:
            return


def _part(url: str, path: str, context: ssl.SSLContext, token: str, offset: int) -> Iterator[bytes]:
    connection = _connect(url, context)
    try:
        connection.request("GET", path, headers=_headers(token) | {"range": f"bytes={offset}-"})
        answer = connection.getresponse()
        if answer.status == 416:  # everything is here already
            return
        if answer.status >= 300:
            raise _refusal(answer.status, answer.read(_MAX_ANSWER))
        if offset and answer.status != 206:
            raise HubError(f"the hub does not serve ranges of {path}")
        while chunk := answer.read1(_CHUNK):
            yield chunk
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
    finally:
        connection.close()


def _connect(url: str, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    parts = urllib.parse.urlsplit(url)
    return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S, context=context)


def _headers(token: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token is not None else {}


def _refusal(status: int, raw: bytes) -> HubError:
    try:
        detail = parse(raw, _Problem, "").detail
    except FormatError:
        detail = f"the hub answered {status}"
    return _REFUSALS.get(status, HubError)(detail)
