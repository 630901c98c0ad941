"""From what a device reported to what the judge reads. Pure."""

from __future__ import annotations

from cloud_hub.rollouts.judge import DeviceEvidence
from skerry.messages import Reported


def evidence(
    device: str, app: str, release: str, reported: Reported | None, heard_ms: int | None, now_ms: int
) -> DeviceEvidence:
    """What ``device`` showed of ``release``."""
    heard_s = None if heard_ms is None else max(0.0, (now_ms - heard_ms) / 1000)
    report = reported.apps.get(app) if reported is not None else None
    if reported is None or report is None:
        return DeviceEvidence(device, heard_s=heard_s)
    active = report.active == release
    health = report.health
    return DeviceEvidence(
        device,
        heard_s=heard_s,
        took_it=active or release in (report.target, report.good),
        active=active,
        proved=active and any(proof.release == release and proof.refused is None for proof in report.proof),
        kept=active and report.good == release and report.state == "idle",
        soaked_s=health.kept_s if health is not None and health.release == release else 0.0,
        harm=reported.rejected.get(release),
    )


def is_back(app: str, before: str | None, reported: Reported | None) -> bool:
    """Whether a device runs what it ran before a rollout. One that ran nothing has nothing to go back to."""
    if before is None:
        return True
    report = reported.apps.get(app) if reported is not None else None
    return report is not None and report.active == before and report.state == "idle"
