"""Where a sink in the network is: a URL without a password in it."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from skerry.errors import ConfigError


def address(key: str, url: str, *, schemes: tuple[str, ...], example: str, instead: str) -> SplitResult:
    """Reads a sink's URL.

    Args:
        key: of the configuration.
        instead: where a password belongs.

    Raises:
        ConfigError: another scheme, no host, or a user or password in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname:
        raise ConfigError(f'{key}: expected "{example}", got "{url[:200]}"')
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{key}: a password in it would be seen in logs; {instead}")
    return parts
