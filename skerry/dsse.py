"""DSSE: a signature over bytes and the type that they claim, so that one document cannot pass for another.

Specification: github.com/secure-systems-lab/dsse, protocol.md and envelope.md.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.documents import parse
from skerry.errors import BadSignature, FormatError


class _Signature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True):
    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: list[_Signature]


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding (protocol.md, "Signature Definition")."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def seal(payload_type: str, payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The envelope around ``payload``, signed with a P-256 key. The same arguments give the same bytes (RFC 6979)."""
    sig = key.sign(pae(payload_type, payload), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return msgspec.json.encode(
        _Envelope(
            base64.b64encode(payload).decode("ascii"),
            payload_type,
            [_Signature(base64.b64encode(sig).decode("ascii"))],
        )
    )


def unseal(raw: bytes, payload_type: str, key: ec.EllipticCurvePublicKey) -> bytes:
    """The payload, if ``key`` signed it as a document of this type.

    Raises:
        FormatError: not an envelope, or one around another type.
        BadSignature: no signature in it is of this key.
    """
    envelope = parse(raw, _Envelope, "not a signed document")
    if envelope.payload_type != payload_type:
        raise FormatError(f"a signed document of type {envelope.payload_type!r}; expected {payload_type!r}")
    payload = _decoded(envelope.payload)
    for signature in envelope.signatures[:8]:
        try:
            key.verify(_decoded(signature.sig), pae(payload_type, payload), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return payload
    raise BadSignature(f"a document of type {payload_type} that the expected key did not sign")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise FormatError(f"a signed document whose base64 is off: {exc}") from exc
