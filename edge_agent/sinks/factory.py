"""The sinks that a configuration names. What one of them needs is imported only if it is named."""

from __future__ import annotations

import os
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.config import AgentConfig, MqttConfig, SinksConfig, WebhookConfig
from edge_agent.sinks.inline import Inline, ReadPicture
from edge_agent.sinks.jsonl import JsonlSink
from edge_agent.sinks.sink import Sink
from edge_agent.sinks.terminal import TerminalSink
from edge_agent.sources.credentials import Credentials, find
from skerry.clock import Clock
from skerry.disk import Disk
from skerry.errors import SkerryError

_PORTS = {"http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883}
_PATIENCE_S = 3.0


def make_sinks(
    config: AgentConfig,
    passwords: Path,
    read: ReadPicture,
    device: str,
    say: Callable[[str], object],
    disk: Disk,
    clock: Clock,
) -> list[Sink]:
    """Makes them; none connects yet.

    Args:
        passwords: the file where credentials are.
        read: a picture's file by its digest.
        device: a name for this device that stays.

    Raises:
        ConfigError: an address, or credentials, that there are not.
    """
    sinks: list[Sink] = []
    if config.events.jsonl:
        sinks.append(JsonlSink(Path(config.events.jsonl), disk))
    if config.events.terminal:
        sinks.append(TerminalSink(say))
    if config.sinks.mqtt is not None:
        sinks.append(_mqtt(config.sinks.mqtt, passwords, read, device))
    if config.sinks.webhook is not None:
        sinks.append(_webhook(config.sinks.webhook, passwords, read, clock))
    return sinks


def _mqtt(config: MqttConfig, passwords: Path, read: ReadPicture, device: str) -> Sink:
    from edge_agent.sinks.mqtt import MqttSink  # noqa: PLC0415

    secret = _secret(config.credentials, passwords)
    return MqttSink(config, secret, Inline(read if config.picture else None), f"skerry-{device[:16]}")


def _webhook(config: WebhookConfig, passwords: Path, read: ReadPicture, clock: Clock) -> Sink:
    from edge_agent.sinks.webhook import WebhookSink  # noqa: PLC0415

    secret = _secret(config.credentials, passwords)
    key = secret.password.encode("utf-8") if secret is not None else None
    return WebhookSink(config, key, Inline(read if config.picture else None), clock)


def look(config: SinksConfig, passwords: Path, clock: Clock) -> Iterator[tuple[str, str | None]]:
    """Each sink elsewhere, and what is wrong: its address, its credentials, or that nobody is there. For a doctor."""
    wanted: list[tuple[str, str, Callable[[], Sink]]] = []
    if (mqtt := config.mqtt) is not None:
        wanted.append(("mqtt", mqtt.url, lambda: _mqtt(mqtt, passwords, _no_picture, "doctor")))
    if (hook := config.webhook) is not None:
        wanted.append(("webhook", hook.url, lambda: _webhook(hook, passwords, _no_picture, clock)))
    for name, url, make in wanted:
        try:
            make()
            parts = urllib.parse.urlsplit(url)
            address = parts.hostname or "", parts.port or _PORTS[parts.scheme]
            socket.create_connection(address, _PATIENCE_S).close()
        except (SkerryError, OSError) as exc:
            yield name, str(exc)
        else:
            yield name, None


def _no_picture(_sha256: str) -> bytes | None:
    return None


def _secret(name: str | None, passwords: Path) -> Credentials | None:
    return find(name, passwords, os.environ) if name is not None else None
