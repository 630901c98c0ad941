"""The agent's numbers in Prometheus's text format. Pure.

Source: prometheus.io, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from edge_agent.histogram import BOUNDS_S, Histogram
from edge_agent.status import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(status: Status, stages: Mapping[str, Histogram]) -> str:
    """Everything, one scrape."""
    return "\n".join([*_lines(status), *_histograms(stages)]) + "\n"


def _lines(status: Status) -> Iterator[str]:
    yield from _one("skerry_agent_uptime_seconds", "gauge", "since the agent started", status.uptime_s)
    yield from _one("skerry_agent_vision", "gauge", "1 while a model is in service", int(status.vision))
    yield from _info(status)
    yield "# HELP skerry_agent_frames_total frames by what became of them"
    yield "# TYPE skerry_agent_frames_total counter"
    for source, counts in status.sources.items():
        for fate in ("processed", "superseded", "failed"):
            labels = f'{{source="{_escaped(source)}",fate="{fate}"}}'
            yield f"skerry_agent_frames_total{labels} {getattr(counts, fate)}"
    yield "# HELP skerry_agent_source_failing 1 while a source gives no pictures, or always the same"
    yield "# TYPE skerry_agent_source_failing gauge"
    for source, counts in status.sources.items():
        yield f'skerry_agent_source_failing{{source="{_escaped(source)}"}} {int(counts.failing is not None)}'
    outbox = status.outbox
    yield from _one("skerry_agent_events_accepted_total", "counter", "events on the disk", outbox.accepted)
    yield from _one("skerry_agent_events_lost_total", "counter", "events that the full outbox dropped", outbox.lost)
    yield from _one(
        "skerry_agent_events_unrecorded_total", "counter", "events that the disk refused", outbox.unrecorded
    )
    yield from _by("sink", "waiting", "gauge", "events that a sink has not got", status.outbox.sinks)
    yield from _by("sink", "lost", "counter", "events that the full outbox dropped before it", status.outbox.sinks)
    yield from _by("sink", "skipped", "counter", "events that a sink refused for good", status.outbox.sinks)
    for what, about in (
        ("missed", "not made"),
        ("withheld", "not let out"),
        ("unsent", "dropped before they were sent"),
    ):
        yield from _by("pictures", what, "counter", f"pictures that were wanted and {about}", status.pictures)
    if (link := status.link) is not None:
        yield from _one("skerry_agent_link_connected", "gauge", "1 while the hub is reached", int(link.connected))
        yield from _one("skerry_agent_link_waiting", "gauge", "events that the hub has not acknowledged", link.waiting)


def _info(status: Status) -> Iterator[str]:
    active = status.record.active
    named = status.names.get(active.release, "?") if active else "none"
    labels = {
        "version": status.version,
        "state": status.record.state.value,
        "model": named,
        "variant": active.variant if active else "none",
    }
    yield "# HELP skerry_agent_info what runs"
    yield "# TYPE skerry_agent_info gauge"
    written = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    yield f"skerry_agent_info{{{written}}} 1"


def _one(name: str, kind: str, about: str, value: float) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
    yield f"{name} {value}"


def _by(of: str, what: str, kind: str, about: str, counted: Mapping[str, object]) -> Iterator[str]:
    """One number of each sink, or of each kind of pictures."""
    name = f"skerry_agent_{of}_{what}" + ("_total" if kind == "counter" else "")
    if counted:
        yield f"# HELP {name} {about}"
        yield f"# TYPE {name} {kind}"
    for label, values in counted.items():
        yield f'{name}{{{"kind" if of == "pictures" else of}="{_escaped(label)}"}} {getattr(values, what)}'


def _histograms(stages: Mapping[str, Histogram]) -> Iterator[str]:
    yield "# HELP skerry_agent_stage_seconds time of a frame's stages"
    yield "# TYPE skerry_agent_stage_seconds histogram"
    for stage, histogram in stages.items():
        counts, total_s = list(histogram.counts), histogram.sum_s
        bounds = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
        for bound, count in zip(bounds, itertools.accumulate(counts), strict=True):
            yield f'skerry_agent_stage_seconds_bucket{{stage="{stage}",le="{bound}"}} {count}'
        yield f'skerry_agent_stage_seconds_sum{{stage="{stage}"}} {total_s}'
        yield f'skerry_agent_stage_seconds_count{{stage="{stage}"}} {sum(counts)}'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
