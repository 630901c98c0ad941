"""Where Skerry keeps what belongs to a user of this machine, unless an option says otherwise (XDG Base Directory)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def config_folder(environ: Mapping[str, str]) -> Path:
    """Keys. ``$XDG_CONFIG_HOME/skerry``, as a rule ``~/.config/skerry``."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "skerry"


def state_folder(environ: Mapping[str, str]) -> Path:
    """An agent's data. ``$XDG_STATE_HOME/skerry``, as a rule ``~/.local/state/skerry``."""
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "skerry"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """A compilation's passes. ``$XDG_CACHE_HOME/skerry``, as a rule ``~/.cache/skerry``."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skerry"


def default_key(environ: Mapping[str, str]) -> Path:
    """The private key that this user's compilations sign with; its public half lies beside it, with ".pub"."""
    return config_folder(environ) / "signing.pem"
