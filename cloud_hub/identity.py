"""Who is who: the fleet's own certificate authority, the key that signs wishes, secrets that are kept as digests."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skerry import signing
from skerry.clock import Clock
from skerry.disk import Disk
from skerry.errors import FormatError

TENANT = "main"  # one fleet for now; topics, certificates and rows have room for more
HUB = "hub"  # the hub's own name on the broker; no device has it, since those have 26 characters

_CA_DAYS, _SERVER_DAYS, _DEVICE_DAYS = 7300, 820, 365
_GRACE = timedelta(days=1)  # a device's clock may be behind


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """The fleet CA, in a folder. Made when the folder has none.

    Attributes:
        ca: the certificate's file.
        desired: signs wishes.
    """

    def __init__(self, folder: Path, disk: Disk, clock: Clock) -> None:
        self._folder, self._disk, self._clock = folder, disk, clock
        self.ca = folder / "ca.pem"
        if not folder.is_dir():
            disk.make_dirs(folder.parent)
            disk.mkdir(folder)
            folder.chmod(0o700)
        self._key = self._load_or_make("ca")
        self.desired = self._load_or_make("desired")
        if not self.ca.exists():
            disk.replace(self.ca, _pem(self._make_ca()))
        self._certificate = x509.load_pem_x509_certificate(self.ca.read_bytes())

    def _load_or_make(self, name: str) -> ec.EllipticCurvePrivateKey:
        path = self._folder / f"{name}.key"
        return signing.load_key(path) if path.exists() else signing.make_key(self._disk, path)

    @property
    def ca_pem(self) -> str:
        return _pem(self._certificate).decode("ascii")

    @property
    def ca_sha256(self) -> str:
        """What a claim token knows the hub by."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def desired_pem(self) -> str:
        """The public key that devices check wishes with."""
        return signing.public_pem(self.desired.public_key()).decode("ascii")

    def server(self, names: Sequence[str], name: str = "server") -> Pair:
        """A certificate for the names that devices reach a server by; a new one each time, so that none runs out."""
        alternatives = [_general_name(name) for name in names]
        return self._issue(name, names[0], ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def client(self) -> Pair:
        """The hub's own certificate for the broker."""
        return self._issue("client", HUB, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def _issue(self, name: str, common: str, usage: x509.ObjectIdentifier, also: list[x509.GeneralName]) -> Pair:
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        key = signing.make_key(self._disk, pair.key)
        self._disk.replace(pair.certificate, _pem(self._sign(key.public_key(), common, usage, _SERVER_DAYS, also)))
        return pair

    def certify_device(self, device: str, key: ec.EllipticCurvePublicKey) -> str:
        """The certificate (PEM) by which a device's key is known: its common name is the device's id."""
        return _pem(self._sign(key, device, ExtendedKeyUsageOID.CLIENT_AUTH, _DEVICE_DAYS, [])).decode("ascii")

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        common: str,
        usage: x509.ObjectIdentifier,
        days: int,
        also: list[x509.GeneralName],
    ) -> x509.Certificate:
        builder = (
            self._builder(key, common, days)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if also:
            builder = builder.add_extension(x509.SubjectAlternativeName(also), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _make_ca(self) -> x509.Certificate:
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = self._builder(self._key.public_key(), "Skerry fleet CA", _CA_DAYS)
        return (
            builder.issuer_name(_subject("Skerry fleet CA"))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _builder(self, key: ec.EllipticCurvePublicKey, common: str, days: int) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(self._clock.utc().ms / 1000, UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_subject(common))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _GRACE)
            .not_valid_after(now + timedelta(days=days))
        )


def read_csr(pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request that its owner signed.

    Raises:
        FormatError: not a request, not signed by its own key, or not for a P-256 key.
    """
    try:
        request = x509.load_pem_x509_csr(pem.encode("ascii"))
        key, signed = request.public_key(), request.is_signature_valid
    except Exception as exc:  # the parser raises more kinds than it documents, all about the bytes
        raise FormatError(f"not a certificate request (PEM): {exc}") from exc
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise FormatError("the certificate request must be for a P-256 key and signed by it")
    return key


def digest(secret: str) -> str:
    """What is stored of a secret. It has 128 random bits, so that a slow hash would add nothing."""
    return hashlib.sha256(secret.encode("utf-8")).hexdigest()


def _subject(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
