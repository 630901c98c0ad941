"""OpenSSF Model Signing v1.0, key method: who built a bundle.

A signature is a Sigstore bundle (JSON) around a DSSE envelope around an in-toto statement that lists each file with its
SHA-256. The stock ``model_signing`` verifies what `sign` makes and `verify` reads what stock signs; this module needs
``cryptography`` alone, so that a device needs no Sigstore client.

Stricter than the specification on purpose: one media type, one signature, the key's hint (not its ``rawBytes``, which
older writers gave), SHA-256, whole files, no links, no ignored paths but the signature itself (stock ignores ``.git*``:
an unlisted file is refused here whatever its name), base64 in its one canonical spelling.

Specification: github.com/ossf/model-signing-spec, spec/v1.0.md; DSSE: github.com/secure-systems-lab/dsse, protocol.md.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry import dsse
from skerry.documents import parse
from skerry.errors import BadSignature, FormatError, KeyNotTrusted, UsageError

if TYPE_CHECKING:
    from skerry.disk import Disk

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"

# Curve and its hash, as Sigstore's algorithm registry pairs them.
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


# --- the form: what the published JSON schemas say -----------------------------------------------------------------


class _Hint(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    hint: str = ""
    raw_bytes: str = ""


class _Chain(msgspec.Struct, frozen=True):
    certificates: list[dict[str, str]]


class _Material(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    public_key: _Hint | None = None
    x509_certificate_chain: _Chain | None = msgspec.field(default=None, name="x509CertificateChain")
    certificate: dict[str, str] | None = None
    tlog_entries: list[msgspec.Raw] = []

    def method(self) -> str:
        if self.public_key is not None and (self.public_key.hint or self.public_key.raw_bytes):
            return "key"
        if self.x509_certificate_chain is not None and self.x509_certificate_chain.certificates:
            return "certificate"
        if self.certificate is not None and self.tlog_entries:
            return "sigstore"
        raise FormatError(
            "signature: verificationMaterial holds none of a public key, a certificate chain, or a certificate with a "
            "transparency log entry; sign again"
        )


class _EnvelopeSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    sig: str
    keyid: str | None = None


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = msgspec.field(name="payloadType")
    signatures: list[_EnvelopeSignature]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: dict[str, str]


class _Resource(msgspec.Struct, frozen=True):
    name: str
    digest: str
    algorithm: str


class _Serialization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    method: str
    hash_type: str
    allow_symlinks: bool
    shard_size: int | None = None
    ignore_paths: list[str] = []


class _Predicate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: list[_Subject]
    predicate_type: Literal["https://model_signing/signature/v1.0"] = msgspec.field(name="predicateType")
    predicate: _Predicate


@dataclass(frozen=True)
class Signature:
    """A signature file whose form is right. Says nothing yet about who signed: that is `verify`.

    Attributes:
        method: "key", "certificate" or "sigstore"; only "key" can be verified here.
        hint: the signer's fingerprint of its key (`fingerprint`), lower-case hexadecimal.
        payload: the signed statement, as bytes.
        files: SHA-256 (hexadecimal) by path, in code point order.
    """

    method: str
    hint: str
    payload: bytes
    sig: bytes
    files: Mapping[str, str]

    @classmethod
    def parse(cls, raw: bytes) -> Signature:
        """Reads a signature file.

        Raises:
            FormatError: it is not what the published schemas describe, or uses an option that Skerry does not.
        """
        document = parse(raw, _Document, "not an OpenSSF Model Signing v1.0 signature")
        method = document.verification_material.method()
        envelope = document.dsse_envelope
        if len(envelope.signatures) != 1:
            raise FormatError(f"signature: expected one signature in the envelope, found {len(envelope.signatures)}")
        payload = _unbase64(envelope.payload, "payload")
        key = document.verification_material.public_key
        return cls(
            method=method,
            hint=key.hint if key else "",
            payload=payload,
            sig=_unbase64(envelope.signatures[0].sig, "sig"),
            files=_files(payload),
        )


def _unbase64(text: str, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise FormatError(f"signature: {what} is not base64: {exc}") from exc
    if not raw or base64.b64encode(raw).decode("ascii") != text:
        raise FormatError(f"signature: {what} is empty or not canonical base64")
    return raw


def _files(payload: bytes) -> Mapping[str, str]:
    """The statement's files, after every rule of the specification that concerns its form (5.2, 6.5)."""
    statement = parse(payload, _Statement, "signature: not a model signing statement")
    serialization, resources = statement.predicate.serialization, statement.predicate.resources
    if (serialization.method, serialization.hash_type, serialization.allow_symlinks) != ("files", "sha256", False):
        raise FormatError(
            f"signature: made with method {serialization.method!r}, hash {serialization.hash_type!r}, links "
            f"{serialization.allow_symlinks}; Skerry verifies whole files by sha256 without links: sign again so"
        )
    names = [r.name for r in resources]
    if not names or len(names) != len(set(names)):
        raise FormatError("signature: its files are none or doubled")
    if any(
        r.algorithm != "sha256" or len(r.digest) != 64 or set(r.digest) - set("0123456789abcdef") for r in resources
    ):
        raise FormatError("signature: a file's digest is not a lower-case SHA-256")
    files = {r.name: r.digest for r in resources}
    if len(statement.subject) != 1 or statement.subject[0].digest.get("sha256") != _root_digest(files.values()):
        raise FormatError("signature: its root digest does not fit its files")
    return files


def _root_digest(digests: Iterable[str]) -> str:
    """SHA-256 over the files' raw digests, in the order in which the statement lists them (specification 6.5.1)."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


# --- signing and verifying -----------------------------------------------------------------------------------------


def sign(name: str, files: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Signs SHA-256 digests by path. The same arguments give the same bytes (RFC 6979)."""
    statement = _Statement(
        type=STATEMENT_TYPE,
        subject=[_Subject(name, {"sha256": _root_digest(files[path] for path in sorted(files))})],
        predicate_type=PREDICATE_TYPE,
        predicate=_Predicate(
            serialization=_Serialization("files", "sha256", allow_symlinks=False, ignore_paths=["bundle.sig"]),
            resources=[_Resource(path, files[path], "sha256") for path in sorted(files)],
        ),
    )
    payload = msgspec.json.encode(statement)
    sig = key.sign(dsse.pae(PAYLOAD_TYPE, payload), ec.ECDSA(_hash(key.public_key()), deterministic_signing=True))
    document = _Document(
        media_type=MEDIA_TYPE,
        verification_material=_Material(public_key=_Hint(fingerprint(key.public_key()))),
        dsse_envelope=_Envelope(
            base64.b64encode(payload).decode("ascii"),
            PAYLOAD_TYPE,
            [_EnvelopeSignature(base64.b64encode(sig).decode("ascii"), keyid="")],
        ),
    )
    return msgspec.json.encode(document)


def verify(raw: bytes, trusted: Sequence[ec.EllipticCurvePublicKey]) -> Signature:
    """Returns the signature if one of the ``trusted`` keys made it; only then its ``files`` may be believed.

    Raises:
        FormatError: not a signature that Skerry can read.
        KeyNotTrusted: made by another key, or by a method other than "key".
        BadSignature: names a trusted key, but that key did not sign this.
    """
    signature = Signature.parse(raw)
    if signature.method == "key" and not signature.hint:
        raise KeyNotTrusted("signed by a key that is not named by its hint, as before v1.1 of the format; sign again")
    if signature.method != "key":
        raise KeyNotTrusted(f"signed by the method {signature.method!r}; Skerry trusts keys: sign with a key")
    for key in trusted:
        if fingerprint(key) == signature.hint:
            break
    else:
        known = ", ".join(fingerprint(key)[:16] for key in trusted) or "none"
        raise KeyNotTrusted(
            f"signed by key {signature.hint[:16]}, trusted here: {known}; "
            "name the signer's public key with --trust if you believe it"
        )
    try:
        key.verify(signature.sig, dsse.pae(PAYLOAD_TYPE, signature.payload), ec.ECDSA(_hash(key)))
    except InvalidSignature:
        raise BadSignature(
            f"the signature does not fit what it signs (key {signature.hint[:16]}): it was changed after signing"
        ) from None
    return signature


# --- keys ----------------------------------------------------------------------------------------------------------


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the PEM that holds the public key, as stock ``model_signing`` puts it into its hint."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as a PEM file holds it."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def make_key(disk: Disk, path: Path) -> ec.EllipticCurvePrivateKey:
    """Makes a P-256 key at ``path`` (readable by its owner alone) and its public half at ``path`` + ".pub"."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    disk.make_dirs(path.parent)
    disk.replace(path, pem, mode=0o600)
    disk.replace(path.with_name(path.name + ".pub"), public_pem(key.public_key()))
    return key


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Reads a private key from a PEM file.

    Raises:
        UsageError: not there, encrypted, or not an EC key on P-256, P-384 or P-521.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"cannot read a private key from {path}: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path}: expected an elliptic-curve key, found {type(key).__name__}")
    _hash(key.public_key(), path)
    return key


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Reads a public key from a PEM file.

    Raises:
        UsageError: not there, or not an EC key on P-256, P-384 or P-521.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"cannot read a public key from {path}: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(f"{path}: expected an elliptic-curve key, found {type(key).__name__}")
    _hash(key, path)
    return key


def _hash(key: ec.EllipticCurvePublicKey, path: Path | None = None) -> hashes.HashAlgorithm:
    try:
        return _HASHES[key.curve.name]
    except KeyError:
        raise UsageError(f"{path or 'key'}: curve {key.curve.name}; expected one of {', '.join(_HASHES)}") from None
