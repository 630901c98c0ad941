"""What lets a device join a fleet: the claim token that an operator hands out, and what passes when it is used.

The token holds all that a device with no configuration needs: where the hub is, by which certificate to know it, the
secret, and whose bundles to trust. The last is the operator's word, not the hub's: whoever takes the hub over cannot
make devices trust another signer.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal

import msgspec

from skerry.documents import parse
from skerry.errors import FormatError, UsageError

_PREFIX = "skerry-claim-1."
JWT_AUDIENCE = "skerry-hub"
JWT_SECONDS = 60
DEVICE_ID = re.compile(r"[a-z2-7]{26}")

Protocol = Literal["3.1.1", "5"]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A claim token's content.

    Attributes:
        url: of the hub, https.
        ca_sha256: of the fleet CA's certificate (DER): the hub is known by it, whatever else the network says.
        secret: proves the right to join; the hub keeps only its digest.
        trust: public keys (PEM) whose bundles the device may run.
    """

    url: str
    ca_sha256: str
    secret: str
    trust: list[str]

    def __str__(self) -> str:
        body = base64.urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode("ascii")
        return _PREFIX + body

    @classmethod
    def parse(cls, text: str) -> Claim:
        """Raises `UsageError` for what is no claim token."""
        body = text.strip().removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            claim = parse(raw, Claim, "claim token")
        except (binascii.Error, ValueError, FormatError) as exc:
            raise UsageError(
                f"this is no claim token ({exc}); expected {_PREFIX}…, whole, as `skerry fleet token create` prints it"
            ) from exc
        if not claim.url.startswith("https://"):
            raise UsageError(f"the claim token names the hub {claim.url!r}; expected https://…")
        return claim


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """Where the fleet's messages go. TLS with the fleet CA, and the client's certificate."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    protocol: Protocol = "3.1.1"


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What a device gets when it joined; it keeps this as it came.

    Attributes:
        device: its id, for ever.
        certificate: for the key that the device made (PEM).
        ca: the fleet CA's certificate (PEM).
        desired_key: public key (PEM) of who signs its wishes.
    """

    device: str
    tenant: str
    name: str
    certificate: str
    ca: str
    desired_key: str
    broker: Broker
