"""What operators see in the terminal: tables, and a rollout as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skerry.clock import SystemClock
from skerry.fleet import documents as doc

_LOOK_S = 0.5
_NONE = "-"
_COLOURS = {
    "passed": "green",
    "harmed": "red",
    "done": "green",
    "taking back": "red",
    "taken back": "red",
    "asking": "yellow",
}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _when(ms: int | None) -> str:
    return "never" if ms is None else datetime.fromtimestamp(ms / 1000, timezone.utc).astimezone().strftime("%H:%M:%S")


def _print(what: RenderableType) -> None:
    Console(highlight=False, soft_wrap=True).print(what)


def devices(found: Sequence[doc.Device]) -> None:
    """A line for each device."""
    table = _table("device", "id", "group", "link", "runs", "should run", "state")
    for d in found:
        link = "revoked" if d.revoked else "online" if d.online else f"offline since {_when(d.heard_ms)}"
        table.add_row(d.name, d.id, d.group, link, d.active or _NONE, d.wanted or _NONE, d.state or _NONE)
    _print(table if found else "no devices yet: make a token with `skerry fleet token create`")


def releases(found: Sequence[doc.Release]) -> None:
    """A line for each release."""
    table = _table("release", "id", "signed by", "pushed")
    for r in found:
        table.add_row(f"{r.name}@{r.version}", r.id[:12], r.signer[:12], _when(r.pushed_ms))
    _print(table if found else "no releases yet: send one with `skerry fleet bundle push`")


def rollouts(found: Sequence[doc.RolloutLine]) -> None:
    """A line for each rollout."""
    table = _table("rollout", "release", "state", "wave", "devices", "drafted")
    for r in found:
        state = Text(r.state, style=_COLOURS.get(r.state, ""))
        table.add_row(str(r.id), r.release, state, f"{r.wave + 1} of {r.waves}", str(r.devices), _when(r.created_ms))
    _print(table if found else "no rollouts yet: begin one with `skerry fleet rollout start`")


def waves(rollout: doc.Rollout) -> str:
    """The sizes of the waves, in words."""
    return f"{rollout.release} to {rollout.devices} devices in waves of " + ", ".join(
        str(len(wave)) for wave in rollout.members
    )


def decision(step: doc.Step) -> Text:
    """A line of the decision log."""
    line = Text(f"{_when(step.at_ms)}  {step.event:<11} ")
    line.append(step.state, style=_COLOURS.get(step.state, "cyan"))
    if step.state == "running":
        line.append(f" wave {step.wave + 1}")
    return line.append(f": {step.why}")


def rollout(seen: doc.Rollout) -> RenderableType:
    """The open waves, the verdict of this moment, and every decision so far."""
    head = Text(f"rollout {seen.id}: {seen.release} ")
    head.append(seen.state, style=_COLOURS.get(seen.state, "cyan"))
    table = _table("wave", "device", "stands", "in its proof", "kept for", "why")
    for index, wave in enumerate(seen.members[: seen.wave + 1], 1):
        for d in wave:
            stands = Text(d.standing, style=_COLOURS.get(d.standing, ""))
            proof = f"{d.time_ms:.1f} ms a frame" if d.time_ms is not None else _NONE
            table.add_row(str(index), d.name, stands, proof, f"{d.soaked_s:.0f} s", d.harm or "")
    parts: list[RenderableType] = [head, table]
    if seen.verdict is not None:
        parts.append(Text(f"the judge says {seen.verdict.says}: {seen.verdict.numbers}", style="dim"))
    return Group(*parts, *(decision(step) for step in seen.log))


def watch(look: Callable[[], doc.Rollout], ended: Callable[[doc.Rollout], bool]) -> doc.Rollout:
    """Shows a rollout until it has ended. Into a file or a pipe go its decisions alone, each as it is taken."""
    console, clock = Console(highlight=False), SystemClock()
    seen = look()
    if not console.is_terminal:
        told = 0
        while True:
            for step in seen.log[told:]:
                console.print(decision(step), soft_wrap=True)
            told = len(seen.log)
            if ended(seen):
                return seen
            clock.sleep(_LOOK_S)
            seen = look()
    with Live(rollout(seen), console=console, refresh_per_second=4) as live:
        while not ended(seen):
            clock.sleep(_LOOK_S)
            seen = look()
            live.update(rollout(seen))
    return seen
