"""``skerry agent service install | uninstall``: the unit, its user and its folders; nothing that uninstalling loses.

With ``root`` everything is written below that folder instead, for building an image: then no program is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skerry.disk import Disk
from skerry.errors import StorageError, UsageError

UNIT = "skerry-agent.service"
USER = "skerry"
_GROUPS = ("video", "render")  # cameras; GPUs
_TEMPLATE = Path(__file__).with_name(UNIT)
_CONFIG = """# The agent's configuration: docs/agent.md of Skerry. After a change: systemctl reload skerry-agent
data = "/var/lib/skerry"
trust = ["/etc/skerry/trusted.pub"]

[api]
port = 8900

# [[sources]]
# url = "rtsp://cam.local/live"
"""


@dataclass(frozen=True)
class Service:
    """Where the service's files lie.

    Args:
        root: "/", or the folder of an image that is being built.
    """

    root: Path = Path("/")

    @property
    def unit(self) -> Path:
        return self.root / "etc/systemd/system" / UNIT

    @property
    def config(self) -> Path:
        return self.root / "etc/skerry/agent.toml"

    @property
    def sysusers(self) -> Path:
        return self.root / "etc/sysusers.d/skerry.conf"

    @property
    def live(self) -> bool:
        return self.root == Path("/")


def unit_text(python: str, config: str, groups: Sequence[str]) -> str:
    """The unit.

    Args:
        groups: supplementary ones that exist; a unit that names another one does not start.
    """
    text = _TEMPLATE.read_text(encoding="utf-8")
    for mark, value in (("PYTHON", python), ("CONFIG", config), ("USER", USER), ("GROUPS", " ".join(groups))):
        text = text.replace(f"@{mark}@", value)
    return text


def install(service: Service, disk: Disk, say: Callable[[str], object]) -> None:
    """Makes the user, the folders and the unit, and starts it once it is configured. A configuration is left as it is.

    Raises:
        UsageError: without root's rights, or without systemd.
        StorageError: a file cannot be written.
    """
    _require(service)
    _write(service.sysusers, _sysusers(), disk, say)
    new = not service.config.exists()
    if new:
        _write(service.config, _CONFIG, disk, say)
    _write(service.unit, unit_text(sys.executable, "/etc/skerry/agent.toml", list(_groups(service))), disk, say)
    if not service.live:
        return
    _run(["systemd-sysusers", str(service.sysusers)])
    shutil.chown(service.config, USER, USER)
    _run(["systemctl", "daemon-reload"])
    _run(["systemctl", "enable", UNIT] if new else ["systemctl", "enable", "--now", UNIT])
    if new:
        say(f"next: name your cameras and your key in {service.config}, then: systemctl start {UNIT}")
    else:
        say(f"running: systemctl status {UNIT}; journalctl -u {UNIT} -f")


def uninstall(service: Service, disk: Disk, say: Callable[[str], object]) -> None:
    """Stops the service and removes its unit. Data, configuration and user stay; it says where they are."""
    _require(service)
    if service.live and service.unit.exists():
        _run(["systemctl", "disable", "--now", UNIT])
    for file in (service.unit, service.sysusers):
        if file.exists():
            disk.unlink(file)
            say(f"removed: {file}")
    if service.live:
        _run(["systemctl", "daemon-reload"])
    say(f"kept: /var/lib/skerry (releases, events, identity), {service.config.parent}, the user {USER}")


def _require(service: Service) -> None:
    if not service.live:
        return
    if os.geteuid() != 0:
        raise UsageError("a service of the system is root's to change: sudo, or --root DIR for the folder of an image")
    if not Path("/run/systemd/system").is_dir():
        raise UsageError(
            "systemd does not run here: `skerry agent run` keeps its agent alive by itself; --root DIR writes the "
            "files into the folder of an image"
        )


def _write(file: Path, text: str, disk: Disk, say: Callable[[str], object]) -> None:
    disk.make_dirs(file.parent)
    disk.replace(file, text.encode())
    say(f"wrote: {file}")


def _sysusers() -> str:
    members = "".join(f"m {USER} {group}\n" for group in _GROUPS)
    return f'u {USER} - "Skerry edge agent" /var/lib/skerry\n{members}'


def _groups(service: Service) -> Iterator[str]:
    """Those of the groups that the system has."""
    try:
        lines = (service.root / "etc/group").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = {line.partition(":")[0] for line in lines}
    yield from (group for group in _GROUPS if group in names)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the system's own
    if done.returncode:
        raise StorageError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")
