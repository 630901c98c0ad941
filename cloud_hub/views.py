"""The API's documents, made of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from cloud_hub.devices import Row, wishes_of
from cloud_hub.registry import Registry
from cloud_hub.rollouts.service import View
from skerry.fleet import documents as doc
from skerry.messages import Birth, Reported
from skerry.wire import MAIN_APP


def names(registry: Registry) -> dict[str, str]:
    """``name@version`` by release id."""
    return {release.id: str(release) for release in registry.all()}


def device(row: Row, names: Mapping[str, str]) -> doc.Device:
    """A device's row."""
    reported = msgspec.json.decode(row.reported, type=Reported) if row.reported is not None else None
    report = reported.apps.get(MAIN_APP) if reported is not None else None
    wanted = wishes_of(row).get(MAIN_APP)
    birth = msgspec.json.decode(row.birth, type=Birth) if row.birth is not None else None
    active = report.active if report is not None else None
    return doc.Device(
        id=row.id,
        name=row.name,
        group=row.group,
        enrolled_ms=row.enrolled_ms,
        revoked=row.revoked_ms is not None,
        online=row.online,
        heard_ms=row.heard_ms,
        agent=birth.agent if birth is not None else None,
        seen_version=row.seen_version,
        desired_version=row.desired_version,
        wanted=names.get(wanted.release, wanted.release) if wanted is not None else None,
        active=names.get(active, active) if active is not None else None,
        state=report.state if report is not None else None,
        reported=msgspec.json.decode(row.reported) if row.reported is not None else None,
    )


def event(raw: bytes) -> dict[str, Any]:
    """An event as the device wrote it."""
    found = msgspec.json.decode(raw)
    return found if isinstance(found, dict) else {"event": found}


def rollout(view: View, rows: Mapping[str, Any], names: Mapping[str, str]) -> doc.Rollout:
    """A rollout with how each device stands. ``rows`` holds id, name and report of its devices."""
    made = view.rollout
    return doc.Rollout(
        id=int(made.id),
        release=names.get(made.release, made.release),
        release_id=made.release,
        app=made.app,
        state=made.state.value,
        wave=made.wave,
        waves=len(made.waves),
        devices=sum(len(wave) for wave in made.waves),
        created_ms=made.since_ms if not view.log else view.log[0].at_ms,
        due_ms=made.due_ms,
        policy=doc.Policy(**msgspec.to_builtins(view.policy)),
        members=[[_member(d, rows.get(d), view, names) for d in wave] for wave in made.waves],
        verdict=_verdict(view),
        log=[doc.Step(**asdict(step)) for step in view.log],
    )


def _member(device: str, row: Any, view: View, names: Mapping[str, str]) -> doc.WaveDevice:
    seen = view.evidence[device]
    before = view.rollout.before.get(device)
    return doc.WaveDevice(
        device=device,
        name=row.name if row is not None else device,
        standing=view.standing[device].value,
        active=seen.active,
        proved=seen.proved,
        kept=seen.kept,
        soaked_s=seen.soaked_s,
        heard_s=seen.heard_s,
        harm=seen.harm,
        time_ms=_time_ms(row, view.rollout.app, view.rollout.release),
        before=names.get(before, before) if before is not None else None,
    )


def _time_ms(row: Any, app: str, release: str) -> float | None:
    if row is None or row.reported is None:
        return None
    report = msgspec.json.decode(row.reported, type=Reported).apps.get(app)
    fitting = [p.time_ms for p in report.proof if p.release == release and p.refused is None] if report else []
    return min(fitting, default=None)


def _verdict(view: View) -> doc.Verdict | None:
    if view.verdict is None:
        return None
    says = {"GoOn": "go on", "TakeBack": "take back", "Ask": "ask", "Wait": "wait"}[type(view.verdict).__name__]
    return doc.Verdict(says=says, numbers=str(next(iter(vars(view.verdict).values()))))
