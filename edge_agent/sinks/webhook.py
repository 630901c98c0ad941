"""Events to a web server: one a request, signed, each until it is taken, or refused often enough to be given up.

The body is an event as in the file: ``{"stream", "seq", "event"}``, with ``picture`` (base64) if that is asked for.

    Skerry-Event: <stream>/<seq>             the same for every attempt: a receiver drops repeats by it
    Skerry-Signature: t=<seconds>,v1=<hex>   HMAC-SHA256 over ``<t>.<body>``; t is when it was sent
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import logging
from collections.abc import Sequence
from urllib.parse import SplitResult, urlunsplit

from edge_agent.config import WebhookConfig
from edge_agent.sinks.address import address
from edge_agent.sinks.inline import Inline
from edge_agent.sinks.sink import Sink
from edge_agent.sinks.tls import trusting
from skerry import __version__
from skerry.clock import Clock
from skerry.errors import SinkError
from skerry.wire import Stored

_log = logging.getLogger(__name__)

_MAX_ANSWER = 64 << 10
_LONGEST_WAIT_S = 600.0
_NOT_YET = (408, 425, 429)  # refusals that say nothing about the event


class WebhookSink(Sink):
    """Posts events.

    Args:
        secret: signs; None: nothing is signed.
        inline: makes an event's bytes.

    Raises:
        ConfigError: no address that can be posted to, or no file of whom to believe.
    """

    name = "webhook"
    limit = 1  # one event a request, so that a refusal says which one is meant
    longest_pause_s = 60.0

    def __init__(self, config: WebhookConfig, secret: bytes | None, inline: Inline, clock: Clock) -> None:
        self._config, self._secret, self._inline, self._clock = config, secret, inline, clock
        self._parts = _address(config.url)
        self._context = trusting(config.ca) if self._parts.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None
        self._tried: tuple[str, int, int] = ("", 0, 0)  # stream, number, refusals
        self.skipped = 0

    def deliver(self, events: Sequence[Stored]) -> None:
        for stored in events:
            status, why, pause_s = self._post(stored)
            if 200 <= status < 300:
                continue
            if 400 <= status < 500 and status not in _NOT_YET:
                self._refused(stored, why)
            else:
                raise SinkError(f"{self._where} answered {why}", pause_s)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _where(self) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}"

    def _refused(self, stored: Stored, why: str) -> None:
        """Raises, until it was refused often enough; then goes on without the event."""
        stream, seq, before = self._tried
        refusals = before + 1 if (stream, seq) == (stored.stream, stored.seq) else 1
        self._tried = (stored.stream, stored.seq, refusals)
        if refusals < self._config.tries:
            raise SinkError(f"{self._where} refuses event #{stored.seq}: {why}")
        self.skipped += 1
        _log.error("webhook: event #%d is left out, it was refused %d times: %s", stored.seq, refusals, why)

    def _post(self, stored: Stored) -> tuple[int, str, float]:
        """The answer's status, its words, and how long the server wants to be left alone."""
        body = self._inline.encode(stored)
        reused = self._connection is not None
        try:
            return self._ask(stored, body)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            if not (reused and isinstance(exc, (ConnectionError, http.client.RemoteDisconnected))):
                raise SinkError(f"no answer from {self._where}: {exc or type(exc).__name__}") from exc
        try:
            return self._ask(stored, body)  # the server had closed a connection that was idle
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise SinkError(f"no answer from {self._where}: {exc or type(exc).__name__}") from exc

    def _ask(self, stored: Stored, body: bytes) -> tuple[int, str, float]:
        connection = self._connection = self._connection or self._connect()
        path = urlunsplit(("", "", self._parts.path or "/", self._parts.query, ""))
        connection.request("POST", path, body, self._headers(stored, body))
        answer = connection.getresponse()
        raw = answer.read(_MAX_ANSWER)
        if answer.length or answer.will_close:
            self.close()
        return answer.status, f"{answer.status} {_words(raw) or answer.reason}", _pause_s(answer)

    def _headers(self, stored: Stored, body: bytes) -> dict[str, str]:
        headers = {
            "content-type": "application/json",
            "user-agent": f"skerry/{__version__}",
            "skerry-event": f"{stored.stream}/{stored.seq}",
        }
        if self._secret is not None:
            headers["skerry-signature"] = signature(self._secret, self._clock.utc().ms // 1000, body)
        return headers

    def _connect(self) -> http.client.HTTPConnection:
        host, port, timeout = self._parts.hostname or "", self._parts.port, self._config.timeout_s
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=timeout)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)


def signature(secret: bytes, seconds: int, body: bytes) -> str:
    """The header's value: what a receiver computes again."""
    digest = hmac.new(secret, b"%d." % seconds + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


def _address(url: str) -> SplitResult:
    example, instead = "https://host/path", "name credentials, they sign"
    return address("sinks.webhook.url", url, schemes=("http", "https"), example=example, instead=instead)


def _words(raw: bytes) -> str:
    """The beginning of an answer, for the log."""
    return " ".join(raw[:200].decode("utf-8", "replace").split())


def _pause_s(answer: http.client.HTTPResponse) -> float:
    wanted = answer.getheader("retry-after", "")
    return min(float(wanted), _LONGEST_WAIT_S) if wanted.isascii() and wanted.isdigit() else 0.0
