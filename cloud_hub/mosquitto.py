"""Mosquitto as the fleet's broker: the same rules as the embedded one's gate, in its own words.

mosquitto.conf(5): with ``use_identity_as_username`` the name in the certificate is the user, and with
``use_username_as_clientid`` also the client id, so that no device can take another's place.
"""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path

from cloud_hub.gate import MAX_PACKET
from cloud_hub.identity import HUB, TENANT, Authority
from skerry.disk import Disk

_CONFIG = """\
# Written by `skerry hub broker-config`; written anew by the next one.
# It runs as the hub's own user, who may read the keys; Mosquitto changes to another one if it is started as root.
user {user}
per_listener_settings false
persistence false
allow_anonymous false
listener {port}
cafile {ca}
certfile {certificate}
keyfile {key}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
acl_file {acl}
max_packet_size {max_packet}
retain_available false
max_queued_messages 1000
"""

_ACL = """\
user {hub}
topic readwrite skerry/1/{tenant}/#

pattern write skerry/1/{tenant}/%u/up/#
pattern read skerry/1/{tenant}/%u/down/#
pattern read skerry/1/{tenant}/hub/status
"""


def write_config(folder: Path, authority: Authority, names: Sequence[str], port: int, disk: Disk) -> Path:
    """Writes the configuration, the ACL, and a certificate for ``names``; returns the configuration's path."""
    disk.make_dirs(folder)
    pair = authority.server(names, "mosquitto")
    values = {
        "ca": authority.ca,
        "certificate": pair.certificate,
        "key": pair.key,
        "acl": folder / "acl",
        "user": getpass.getuser(),
    }
    disk.replace(folder / "acl", _ACL.format(hub=HUB, tenant=TENANT).encode("ascii"))
    text = _CONFIG.format(port=port, max_packet=MAX_PACKET, **values)
    disk.replace(folder / "mosquitto.conf", text.encode("utf-8"))
    return folder / "mosquitto.conf"
