"""Who may ask: on loopback anybody on this machine, elsewhere whoever has the token. An ASGI wrapper.

A page of another site in a browser on this machine must not get in either: a request names the host that it wants, and
one that names another is refused (DNS rebinding); the token's cookie is never sent along by other sites.
"""

from __future__ import annotations

import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from edge_agent.config import ApiConfig
from skerry.errors import ConfigError

_COOKIE = "skerry_token"
_SHORTEST = 16


def token_of(config: ApiConfig) -> str | None:
    """The token that requests must carry; None on loopback without one.

    Raises:
        ConfigError: it is missing where it is needed, too short, or in a file that others may read.
    """
    if config.token_file is None:
        if not _loopback(config.bind):
            raise ConfigError(
                f"api.bind = {config.bind!r} is open to others: name a token with api.token_file, or bind 127.0.0.1"
            )
        return None
    file = Path(config.token_file)
    if not file.is_file():
        raise ConfigError(f"api.token_file: {file} is not there; for example: openssl rand -hex 32 > {file}; chmod 600")
    if file.stat().st_mode & 0o077:
        raise ConfigError(f"api.token_file: {file} can be read by others: chmod 600 {file}")
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < _SHORTEST or not token.isascii():
        raise ConfigError(f"api.token_file: {file} holds {len(token)} characters, at least {_SHORTEST} of ASCII wanted")
    return token


def _loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"


class Guard:
    """Lets requests through to ``app``."""

    def __init__(self, app: Any, config: ApiConfig, token: str | None) -> None:
        self._app, self._token = app, token
        self._names = {config.bind, "localhost", "127.0.0.1", "::1", *config.names}
        self._any = config.bind in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        refused = self._refused(request)
        await (self._app if refused is None else refused)(scope, receive, send)

    def _refused(self, request: Request) -> Response | None:
        host = (request.url.hostname or "").lower()
        if host not in self._names and not (self._any and _address(host)):
            return JSONResponse({"error": f"this is not {host}; add it to api.names in agent.toml"}, 421)
        if self._token is None:
            return None
        given = parse_qs(request.url.query).get("token", [""])[0]
        if (
            given and request.method == "GET" and self._fits(given)
        ):  # a person opens the page: keep it out of the address
            answer = RedirectResponse(request.url.path, 303)
            answer.set_cookie(_COOKIE, given, httponly=True, samesite="strict")
            return answer
        if self._fits(_bearer(request)) or self._fits(_cookie(request)):
            return None
        return JSONResponse(
            {"error": "a token is needed: Authorization: Bearer …, or open /?token=… in a browser"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())


def _address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bearer(request: Request) -> str:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    return value if kind.lower() == "bearer" else ""


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
