"""The hub's web application: its routes, errors as problem+json, and a limit on what is read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cloud_hub.routes import (
    Doors,
    Services,
    device_routes,
    hub_routes,
    operator_routes,
    picture_routes,
    release_routes,
    rollout_routes,
)
from skerry import __version__
from skerry.errors import (
    BundleError,
    Conflict,
    FormatError,
    NotAllowed,
    NotFound,
    SkerryError,
    StorageError,
    StorageFull,
    TooLarge,
    UsageError,
)
from skerry.fleet import documents as doc

_log = logging.getLogger(__name__)

_MAX_BODY = 256 << 10  # of everything but blobs

_STATUS: tuple[tuple[type[SkerryError], int], ...] = (  # the first that fits
    (NotFound, 404),
    (Conflict, 409),
    (NotAllowed, 401),
    (TooLarge, 413),
    (StorageFull, 507),
    (StorageError, 503),
    (UsageError, 422),
    (FormatError, 422),
    (BundleError, 422),
)


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": doc.Problem, "description": HTTPStatus(code).phrase, "content": {"application/problem+json": {}}}
    for code in (400, 401, 404, 405, 409, 413, 422, 503, 507)
}


def make_app(services: Services, lifespan: Lifespan | None = None) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(
        title="Skerry hub",
        version=__version__,
        description="Devices, releases and rollouts of one fleet. Errors are problem+json (RFC 9457).",
        lifespan=lifespan,
        responses=_PROBLEMS,
        docs_url=None,  # it would load scripts from elsewhere; the document itself is at /openapi.json
        redoc_url=None,
    )
    app.add_middleware(_SmallBodies)
    app.add_exception_handler(SkerryError, _skerry_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Exception, _bug)
    doors = Doors(services)
    for routes in (hub_routes, device_routes, picture_routes, release_routes, rollout_routes, operator_routes):
        app.include_router(routes(services, doors))
    return app


# --- problems ------------------------------------------------------------------------------------------------------


def _problem(status: int, detail: str) -> JSONResponse:
    body = doc.Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body.model_dump(), status, headers, media_type="application/problem+json")


def _skerry_problem(_: Request, exc: Exception) -> Response:
    status = next((status for kind, status in _STATUS if isinstance(exc, kind)), 500)
    if status >= 500:
        _log.error("%s: %s", type(exc).__name__, exc)
    return _problem(status, str(exc))


def _validation_problem(_: Request, exc: Exception) -> Response:
    found = cast("RequestValidationError", exc).errors()
    words = "; ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in found[:8])
    return _problem(422, words)


def _http_problem(_: Request, exc: Exception) -> Response:
    known = cast("HTTPException", exc)
    return _problem(known.status_code, str(known.detail))


def _bug(_: Request, exc: Exception) -> Response:
    _log.error("a bug: %s", exc, exc_info=exc)
    return _problem(500, "the hub failed at this; its log says where")


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _SmallBodies:
    """Refuses a request whose body is larger than any document of the API, before it is all in memory."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "PUT":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > _MAX_BODY:
                raise HTTPException(413, f"a request's body has at most {_MAX_BODY} bytes")
            return message

        await self._app(scope, counted, send)
