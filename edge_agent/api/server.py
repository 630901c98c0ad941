"""Serves the agent's HTTP interface in the agent's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from edge_agent.config import ApiConfig
from skerry.errors import ConfigError

_MOST_CONNECTIONS = 64
_MOST_HEAD = 16 << 10  # bytes of a request's head
_STOP_S = 1


class _Server(uvicorn.Server):
    """Signals are the agent's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serve(app: Any, config: ApiConfig) -> AsyncIterator[int]:
    """Answers while the block runs; gives the port.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    listening = _listen(config)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http="h11",
            h11_max_incomplete_event_size=_MOST_HEAD,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=_STOP_S,
        )
    )
    serving = asyncio.create_task(server.serve([listening]), name="api")
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(serving)
        listening.close()


def _listen(config: ApiConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.bind else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.bind, config.port))
        listening.listen(_MOST_CONNECTIONS)  # who asks before the server is up waits, and is not refused
    except OSError as exc:
        listening.close()
        raise ConfigError(
            f"api: cannot listen on {config.bind} port {config.port}: {exc.strerror}; name another in agent.toml, or "
            "stop what listens there"
        ) from exc
    return listening
