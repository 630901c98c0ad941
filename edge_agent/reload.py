"""What a new configuration changes in a running agent, and what only a restart changes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edge_agent.config import AgentConfig, SourceConfig

_LIVE = ("sources", "events", "privacy", "tracking", "zones", "lines")  # what a reload applies
_LIVE_EVENTS = ("when", "min_score", "picture")  # of the events; the outbox and the sinks are a restart's


@dataclass(frozen=True)
class Changes:
    """What to do.

    Attributes:
        config: what holds from now on: the new one, with the old values of what a restart would change.
        ended, begun: sources; one that changed is in both.
        restart: keys whose change waits for a restart.
    """

    config: AgentConfig
    ended: list[str]
    begun: list[SourceConfig]
    restart: list[str]


def changes(before: AgentConfig, after: AgentConfig) -> Changes:
    """From one configuration to the next."""
    old, new = ({s.label: s for s in config.sources} for config in (before, after))
    restart = [key for key in before.__struct_fields__ if key not in _LIVE and _differs(before, after, key)]
    fixed = [key for key in before.events.__struct_fields__ if key not in _LIVE_EVENTS]
    restart += [f"events.{key}" for key in fixed if _differs(before.events, after.events, key)]
    live = {key: getattr(after.events, key) for key in _LIVE_EVENTS}
    config = msgspec.structs.replace(
        before,
        sources=after.sources,
        events=msgspec.structs.replace(before.events, **live),
        privacy=after.privacy,
        tracking=after.tracking,
        zones=after.zones,
        lines=after.lines,
    )
    return Changes(
        config=config,
        ended=[label for label, source in old.items() if new.get(label) != source],
        begun=[source for label, source in new.items() if old.get(label) != source],
        restart=restart,
    )


def _differs(before: msgspec.Struct, after: msgspec.Struct, key: str) -> bool:
    return bool(getattr(before, key) != getattr(after, key))
