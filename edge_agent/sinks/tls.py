"""Whom a sink elsewhere is believed."""

from __future__ import annotations

import ssl

from skerry.errors import ConfigError


def trusting(ca: str | None) -> ssl.SSLContext:
    """Believes whom a PEM file names; without one, whom the system does. Raises `ConfigError` if it cannot be read."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as exc:
        raise ConfigError(f"{ca} is no PEM file of a certificate that can be read: {exc.strerror or exc}") from exc
