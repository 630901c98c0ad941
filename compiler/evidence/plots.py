"""The report's drawings. Each is a pure function of the evidence; shapes and words say all that colours say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from compiler.candidate import Step
from compiler.evidence.evidence import Layer, Point, Timing
from compiler.evidence.svg import Axis, circle, diamond, line, number, path, rect, span, svg, text

_WIDE = 860.0
_CLEAN_DB = 80.0  # errors below that are rounding: all are drawn at the upper edge
_MAP_COLUMNS = 29
_LABEL = 0.2  # of the drawing's width: what a layer's name takes
_SHORT = {"fp32": "32", "fp16": "16", "bf16": "b16", "int8": "8"}


def accuracy_against_latency(
    points: Sequence[Point], budget: float | None, max_times: float | None, fp32_ms: float | None
) -> str:
    """Each candidate by its time and by the points that it loses: up and to the left is better.

    Args:
        budget: points that may be lost.
        max_times: the latency limit as a multiple of fp32's time.
        fp32_ms: that time, for a second scale.
    """
    left, top, right, bottom = 64.0, 20.0, _WIDE - 24.0, 320.0
    timed = [(p, p.times_fp32) for p in points if p.times_fp32 is not None]
    x = Axis(*span([1.0, *(times for _, times in timed), *([max_times] if max_times else [])]), left, right)
    y = Axis(*span([0.0, *(p.drop for p in points), *([budget] if budget is not None else [])]), top, bottom)
    parts = [*_frame(x, y, "time, as a multiple of fp32's", "points lost")]
    if fp32_ms is not None:
        parts += [text(x(t), bottom + 32, f"{t * fp32_ms:.2f} ms", "dim", "middle") for t in x.ticks()]
    if budget is not None:
        parts += [line(left, y(budget), right, y(budget), "limit")]
        parts += [text(right - 4, y(budget) - 6, f"budget: {budget:g} points", "limit-text", "end")]
    if max_times is not None:
        parts += [line(x(max_times), top, x(max_times), bottom, "limit")]
        parts += [text(x(max_times) + 4, top + 12, f"budget: {max_times:.2f} x fp32", "limit-text")]
    parts += [path([(x(1) - 5, y(0)), (x(1) + 5, y(0))], "axis"), path([(x(1), y(0) - 5), (x(1), y(0) + 5)], "axis")]
    parts += [text(x(1) + 8, y(0) + 4, "fp32", "dim")]
    parts += _marks(timed, x, y)
    chosen = sum(p.chosen for p in points)
    return svg(_WIDE, bottom + 58, f"{len(points)} candidates by time and points lost, {chosen} chosen", parts)


def _marks(timed: Sequence[tuple[Point, float]], x: Axis, y: Axis) -> Iterator[str]:
    """A circle per candidate, a square if it is pruned; the chosen ones are named diamonds, and on top."""
    for p, times in sorted(timed, key=lambda one: one[0].chosen):
        at, says = (x(times), y(p.drop)), f"{p.name}: {times:.2f} x fp32, {p.drop:+.2f} points lost"
        if p.chosen:
            left = at[0] > (x.start + x.end) / 2
            yield diamond(*at, 8, "chosen", says)
            yield text(
                at[0] + (-13 if left else 13), at[1] + 4, f"{p.name} (chosen)", "strong", "end" if left else "start"
            )
        elif p.pruned:
            yield rect(at[0] - 4, at[1] - 4, 8, 8, "tried", says)
        else:
            yield circle(*at, 4.5, "tried", says)


def error_of_each_layer(layers: Sequence[Layer], limit_db: float | None) -> str:
    """SQNR of each layer in the graph's order; the worst three are named."""
    left, top, right, bottom = 64.0, 20.0, _WIDE - 24.0, 260.0
    known = [(k, layer, layer.sqnr_db) for k, layer in enumerate(layers, 1) if layer.sqnr_db is not None]
    least = min([db for _, _, db in known] + ([limit_db] if limit_db is not None else []))
    most = min(_CLEAN_DB, max(db for _, _, db in known))
    low, high = span([max(least, -10.0), most])
    x, y = Axis(0.5, len(layers) + 0.5, left, right), Axis(low, high, bottom, top)
    parts = [*_frame(x, y, "layer, in the graph's order", "SQNR, dB")]
    if limit_db is not None:
        parts += [line(left, y(limit_db), right, y(limit_db), "limit")]
        parts += [text(left + 4, y(limit_db) - 6, f"limit of the outputs: {limit_db:g} dB", "limit-text")]
    parts.append(path([(x(k), y(db)) for k, _, db in known], "trace"))
    for k, layer, db in known:
        below = limit_db is not None and db < limit_db
        says = f"{k}: {layer.name} ({layer.kind}), {db:.1f} dB"
        parts.append(diamond(x(k), y(db), 6, "bad-mark", says) if below else circle(x(k), y(db), 3, "tried", says))
    for k, layer, db in _apart(sorted(known, key=lambda one: one[2]), len(layers)):
        side, drop = "end" if k > len(layers) / 2 else "start", 14 if y(db) < bottom - 30 else -8
        parts.append(text(x(k) + (-8 if side == "end" else 8), y(db) + drop, f"{k} {layer.name}", "dim", side))
    return svg(_WIDE, bottom + 44, f"error of {len(known)} layers, the worst {least:.1f} dB", parts)


def _apart(worst: Sequence[tuple[int, Layer, float]], count: int) -> list[tuple[int, Layer, float]]:
    """Of the worst tenth, three at least, those that stand far enough from each other to be labelled, three at most."""
    named: list[tuple[int, Layer, float]] = []
    for one in worst[: max(3, count // 10)]:
        if len(named) < 3 and all(abs(one[0] - other[0]) > count * _LABEL for other in named):
            named.append(one)
    return named


def precision_map(layers: Sequence[Layer]) -> str:
    """Bits of each layer: asked above, real below; a frame and a mark where the two differ."""
    cell, height, block, left = 26.0, 19.0, 66.0, 56.0
    rows = -(-len(layers) // _MAP_COLUMNS)
    parts = []
    for index, layer in enumerate(layers):
        x, y = left + (index % _MAP_COLUMNS) * (cell + 1), 14.0 + (index // _MAP_COLUMNS) * block
        says = (
            f"{index + 1}: {layer.name} ({layer.kind}), asked {layer.requested}, real {layer.real or 'not looked at'}"
        )
        parts.append(text(x + cell / 2, y - 3, str(index + 1), "tiny", "middle"))
        parts += _cell(x, y, cell, height, layer.requested, says)
        parts += _cell(x, y + height + 1, cell, height, layer.real, says)
        if layer.real not in (None, layer.requested):
            parts.append(rect(x - 0.5, y - 0.5, cell + 1, 2 * height + 2, "differs", says))
            parts.append(text(x + cell / 2, y + 2 * height + 11, "≠", "differs-text", "middle"))
    for row in range(rows):
        parts.append(text(0, 28.0 + row * block, "asked", "dim"))
        parts.append(text(0, 28.0 + row * block + height + 1, "real", "dim"))
    wrong = sum(layer.real not in (None, layer.requested) for layer in layers)
    width = left + min(len(layers), _MAP_COLUMNS) * (cell + 1) + 2
    return svg(width, rows * block + 4, f"precision of {len(layers)} layers, {wrong} not as asked", parts)


def _cell(x: float, y: float, width: float, height: float, precision: str | None, says: str) -> list[str]:
    kind = precision if precision in _SHORT else "unknown"
    words = _SHORT.get(precision, precision) if precision else "?"
    return [rect(x, y, width, height, f"cell {kind}", says), text(x + width / 2, y + 14, words, "cell-text", "middle")]


def sizes(timings: Sequence[Timing]) -> str:
    """A bar per variant, with its megabytes and what that is of the largest."""
    left, right, step = 150.0, _WIDE - 150.0, 30.0
    shown = [t for t in timings if t.bytes]
    most = max(t.bytes for t in shown)
    parts = []
    for row, timing in enumerate(shown):
        y, width = 6.0 + row * step, (right - left) * timing.bytes / most
        parts.append(text(left - 10, y + 15, timing.model, "", "end"))
        parts.append(rect(left, y, width, 20, "bar", timing.model))
        parts.append(text(left + width + 8, y + 15, f"{timing.bytes / 1e6:.1f} MB, {timing.bytes / most:.0%}", "dim"))
    return svg(_WIDE, len(shown) * step + 8, f"size of {len(shown)} variants", parts)


def lineage(sources: Mapping[str, str], passes: Mapping[str, Sequence[Step]]) -> str:
    """From the digests that went in, through every pass, to the variants."""
    box, gap, tall = (122.0, 40.0), 24.0, 54.0
    columns: dict[int, list[tuple[str, str, str]]] = {0: [(f"in/{name}", name, d) for name, d in sources.items()]}
    edges: dict[tuple[str, str], None] = {}
    for variant, steps in passes.items():
        for depth, step in enumerate(steps, 1):
            entry = (step.key, step.name, step.digest)
            if entry not in columns.setdefault(depth, []):
                columns[depth].append(entry)
        columns.setdefault(len(steps) + 1, []).append((f"out/{variant}", f"variant {variant}", ""))
        edges |= dict.fromkeys(pairwise([*(s.key for s in steps), f"out/{variant}"]))
        edges |= {(f"in/{name}", _enters(name, steps)): None for name in sources if steps}
    places = {
        key: (depth * (box[0] + gap), 4 + row * tall)
        for depth, entries in columns.items()
        for row, (key, _, _) in enumerate(entries)
    }
    parts = [_edge(places[a], places[b], box) for a, b in edges if a in places and b in places]
    for depth, entries in columns.items():
        for row, (_, name, digest) in enumerate(entries):
            x, y = depth * (box[0] + gap), 4 + row * tall
            parts.append(rect(x, y, *box, "box" if digest else "box strong-box", name))
            parts.append(text(x + 8, y + (17 if digest else 25), name, "small box-text"))
            if digest:
                parts.append(text(x + 8, y + 33, digest[:12], "tiny mono box-text"))
    width = len(columns) * (box[0] + gap) - gap + 2
    return svg(
        width, max(map(len, columns.values())) * tall, f"from {len(sources)} sources to {len(passes)} variants", parts
    )


def _enters(source: str, steps: Sequence[Step]) -> str:
    """The pass that a source goes into: the one called like it, else the first."""
    return next((s.key for s in steps if s.name[:7] == source[:7]), steps[0].key)


def _edge(a: tuple[float, float], b: tuple[float, float], box: tuple[float, float]) -> str:
    start, end = (a[0] + box[0], a[1] + box[1] / 2), (b[0], b[1] + box[1] / 2)
    middle = end[0] - 14.0
    return path([start, (middle, start[1]), (middle, end[1]), end], "edge")


def _frame(x: Axis, y: Axis, below: str, beside: str) -> Iterator[str]:
    """Axes with round numbers, and what they are of."""
    bottom, top = max(y.start, y.end), min(y.start, y.end)
    for tick in x.ticks():
        yield line(x(tick), bottom, x(tick), bottom + 4, "axis")
        yield text(x(tick), bottom + 17, number(tick), "dim", "middle")
    for tick in y.ticks():
        yield line(x.start, y(tick), x.end, y(tick), "grid")
        yield text(x.start - 8, y(tick) + 4, number(tick), "dim", "end")
    yield line(x.start, bottom, x.end, bottom, "axis")
    yield line(x.start, top, x.start, bottom, "axis")
    yield text((x.start + x.end) / 2, bottom + (48 if below.startswith("time") else 36), below, "small", "middle")
    yield text(x.start - 56, top - 6, beside, "small")
