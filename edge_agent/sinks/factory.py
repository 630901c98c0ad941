"""The sinks that a configuration names. What one of them needs is imported only if it is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edge_agent.config import AgentConfig
from edge_agent.sinks.inline import Inline, ReadPicture
from edge_agent.sinks.jsonl import JsonlSink
from edge_agent.sinks.sink import Sink
from edge_agent.sinks.terminal import TerminalSink
from edge_agent.sources.credentials import Credentials, find
from skerry.clock import Clock
from skerry.disk import Disk


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
    if (mqtt := config.sinks.mqtt) is not None:
        from edge_agent.sinks.mqtt import MqttSink  # noqa: PLC0415

        secret = _secret(mqtt.credentials, passwords)
        sinks.append(MqttSink(mqtt, secret, Inline(read if mqtt.picture else None), f"skerry-{device[:16]}"))
    if (hook := config.sinks.webhook) is not None:
        from edge_agent.sinks.webhook import WebhookSink  # noqa: PLC0415

        secret = _secret(hook.credentials, passwords)
        key = secret.password.encode("utf-8") if secret is not None else None
        sinks.append(WebhookSink(hook, key, Inline(read if hook.picture else None), clock))
    return sinks


def _secret(name: str | None, passwords: Path) -> Credentials | None:
    return find(name, passwords, os.environ) if name is not None else None
