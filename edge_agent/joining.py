"""Joins a fleet, however long the network takes: a device is often switched on before its uplink is."""

from __future__ import annotations

import logging
import random  # noqa: TID251 - the start of a process, before there is a composition root
from pathlib import Path

from edge_agent.identity import Identity, enrol
from skerry.backoff import Backoff
from skerry.claim import Claim
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.errors import HubUnreachable

_log = logging.getLogger(__name__)


def join(claim: Claim, name: str, folder: Path, disk: Disk, clock: SystemClock) -> Identity:
    """Enrols; tries again for as long as the hub does not answer. Raises as `edge_agent.identity.enrol` does."""
    backoff, told = Backoff(1.0, 60.0, random.SystemRandom().uniform), False
    while True:
        try:
            return enrol(claim, name, folder, disk)
        except HubUnreachable as exc:
            if not told:
                _log.warning("%s; trying until it answers", exc)
            told = True
            clock.sleep(backoff.pause_s())
