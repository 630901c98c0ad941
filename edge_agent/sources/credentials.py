"""Passwords of cameras, by name: in a file of their own, or handed over by systemd. Never in a URL, log or report.

    credentials.toml, readable by its owner only:
        [gate]
        user = "viewer"
        password = "…"

systemd's ``LoadCredential=gate:/path`` puts a file ``gate`` into ``$CREDENTIALS_DIRECTORY``; its one line is
``user:password``, and it wins over the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from skerry.config import convert, read_toml
from skerry.errors import ConfigError

FILE = "credentials.toml"


@dataclass(frozen=True)
class Credentials:
    """A user and a password. Neither is in its ``repr``."""

    user: str = field(repr=False)
    password: str = field(repr=False)


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: str
    password: str


def find(name: str, file: Path, environ: Mapping[str, str]) -> Credentials:
    """The credentials called ``name``.

    Raises:
        ConfigError: not there, or in a file that others may read.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and (handed := Path(folder) / name).is_file():
        user, _, password = handed.read_text(encoding="utf-8").strip().partition(":")
        return Credentials(user, password)
    if not file.is_file():
        raise ConfigError(f'credentials "{name}": {file} is not there; make it with mode 600, with a table [{name}]')
    if file.stat().st_mode & 0o077:
        raise ConfigError(f"{file} can be read by others: chmod 600 {file}")
    entries = read_toml(file)
    if name not in entries:
        raise ConfigError(f'credentials "{name}": {file} has no table [{name}], only {", ".join(entries) or "none"}')
    entry = convert(entries[name], _Entry, f"{file}: {name}")
    return Credentials(entry.user, entry.password)
