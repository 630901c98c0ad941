"""How both ends of the link use MQTT: one client library, TLS both ways, nothing kept in the broker."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiomqtt

from skerry.claim import Broker

Will = aiomqtt.Will
Client = aiomqtt.Client
Message = aiomqtt.Message
LinkLost = aiomqtt.MqttError

_VERSIONS = {"3.1.1": aiomqtt.ProtocolVersion.V311, "5": aiomqtt.ProtocolVersion.V5}
_WAITING = 4096  # messages that may wait to be read; the sender repeats what is dropped beyond


def tls(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Trusts the fleet CA alone, and shows the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    return context


def client(
    broker: Broker, client_id: str, context: ssl.SSLContext, will: Will, *, keepalive_s: int, timeout_s: float
) -> Client:
    """A client that is not connected yet: entering it connects, and raises `LinkLost` if that fails.

    Nothing is kept in the broker for it while it is away: no persistent session, no retained message.
    """
    version = _VERSIONS[broker.protocol]
    fresh = {"clean_start": True} if version is aiomqtt.ProtocolVersion.V5 else {"clean_session": True}
    return aiomqtt.Client(
        broker.host,
        broker.port,
        identifier=client_id,
        protocol=version,
        tls_context=context,
        will=will,
        keepalive=keepalive_s,
        timeout=timeout_s,
        max_queued_incoming_messages=_WAITING,
        **fresh,  # type: ignore[arg-type]
    )
