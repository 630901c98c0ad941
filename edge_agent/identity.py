"""Who this device is: its key, and what the hub gave it when it joined.

identity/device.key    made here, and never leaves
identity/device.pem    the certificate of it; identity/ca.pem the fleet's
identity/trust-N.pem   whose bundles may run here, by the claim token's word
identity/hub.json      the hub and its answer (`Membership`); written last: where it is, the device has joined
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.https import request
from skerry import signing
from skerry.claim import Claim, Enrolment
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import FormatError, HubError, NotAllowed, UsageError


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """The hub that a device joined."""

    url: str
    ca_sha256: str
    enrolment: Enrolment


@dataclass(frozen=True)
class Identity:
    """A device that has joined.

    Attributes:
        trust: PEM files of the keys that the claim token named.
    """

    folder: Path
    hub: Membership
    key: ec.EllipticCurvePrivateKey
    trust: Sequence[Path]

    @property
    def device(self) -> str:
        return self.hub.enrolment.device

    @property
    def tenant(self) -> str:
        return self.hub.enrolment.tenant

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "device.pem"

    @property
    def key_file(self) -> Path:
        return self.folder / "device.key"

    @property
    def desired_key(self) -> ec.EllipticCurvePublicKey:
        """Whose wishes are believed."""
        key = serialization.load_pem_public_key(self.hub.enrolment.desired_key.encode("ascii"))
        return cast("ec.EllipticCurvePublicKey", key)


def load(folder: Path) -> Identity | None:
    """The device's identity; None if it has not joined."""
    try:
        raw = (folder / "hub.json").read_bytes()
    except FileNotFoundError:
        return None
    membership = parse(raw, Membership, str(folder / "hub.json"))
    key = signing.load_key(folder / "device.key")
    return Identity(folder, membership, key, sorted(folder.glob("trust-*.pem")))


def enrol(claim: Claim, name: str, folder: Path, disk: Disk) -> Identity:
    """Joins the fleet that the claim token names. A device that was cut off on the way joins as the same one.

    Raises:
        HubUnreachable: no answer; try again later.
        NotAllowed: the hub refuses.
        UsageError: the device has joined another fleet.
        HubError: what answers there is not the hub that the token means.
    """
    if (before := load(folder)) is not None:
        if before.hub.ca_sha256 != claim.ca_sha256:
            raise UsageError(
                f"this device has joined the fleet at {before.hub.url} already; to move it, remove {folder} first"
            )
        return before
    disk.make_dirs(folder)
    path = folder / "device.key"
    key = signing.load_key(path) if path.exists() else signing.make_key(disk, path)
    ca = _fetch_ca(claim)
    enrolment = _ask(claim, ca, key, name)
    for number, pem in enumerate(claim.trust, 1):
        disk.replace(folder / f"trust-{number}.pem", pem.encode("ascii"))
    disk.replace(folder / "ca.pem", ca.encode("ascii"))
    disk.replace(folder / "device.pem", enrolment.certificate.encode("ascii"))
    membership = Membership(url=claim.url, ca_sha256=claim.ca_sha256, enrolment=enrolment)
    disk.replace(folder / "hub.json", msgspec.json.encode(membership))
    return Identity(folder, membership, key, sorted(folder.glob("trust-*.pem")))


def _fetch_ca(claim: Claim) -> str:
    """The fleet's certificate: fetched from whoever answers, believed because its digest is the token's."""
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unknown.check_hostname = False
    unknown.verify_mode = ssl.CERT_NONE
    pem = request(claim.url, "GET", "/v1/ca", unknown).decode("ascii", "replace")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as exc:
        raise HubError(f"{claim.url} is no Skerry hub: its /v1/ca is no certificate") from exc
    if hashlib.sha256(der).hexdigest() != claim.ca_sha256:
        raise HubError(
            f"{claim.url} is not the hub that the claim token means: its certificate is another; ask who made it"
        )
    return pem


def _ask(claim: Claim, ca: str, key: ec.EllipticCurvePrivateKey, name: str) -> Enrolment:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])  # the hub names it
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    body = {
        "secret": claim.secret,
        "csr": csr.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        "name": name,
    }
    answer = request(
        claim.url, "POST", "/v1/enrol", ssl.create_default_context(cadata=ca), body=msgspec.json.encode(body)
    )
    try:
        return parse(answer, Enrolment, "the hub's answer to the enrolment")
    except FormatError as exc:
        raise NotAllowed(f"{exc}; hub and agent are of versions that do not fit") from exc
