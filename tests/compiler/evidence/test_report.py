"""The report: every plot with its table, nothing from outside, readable as it is rendered, and honest where empty."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path

import msgspec
import needs
import numpy as np
import pytest
import told
from PIL import Image

from compiler.evidence import plots, tables
from compiler.evidence.evidence import Layer
from compiler.evidence.report import render_html
from compiler.evidence.svg import Axis

FULL = render_html(told.full()).decode()
BARE = render_html(told.bare()).decode()


def words(page: str) -> str:
    """What a reader sees of it, without drawings."""
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


# What is on it


@pytest.mark.parametrize("page", [FULL, BARE], ids=["full", "bare"])
def test_the_page_needs_nothing_but_itself(page: str) -> None:
    assert page.startswith("<!doctype html>")
    assert re.findall(r"https?:|//|src=|href=|url\(|@import|<script|<link|<img|\bon\w+=", page) == []


def test_what_a_name_says_is_text_and_never_markup() -> None:
    assert "<b>" not in FULL
    assert "street &lt;b&gt; @ 3" in FULL


def test_every_drawing_has_its_table_behind_it() -> None:
    figures = [m.start() for m in re.finditer("<figure>", FULL)]
    assert len(figures) == FULL.count("<svg") == 5
    for at in figures:
        behind = FULL[at:].split("</figure>", 1)[1]
        behind = behind if not behind.startswith("\n<figure>") else behind.split("</figure>", 1)[1]
        assert behind.startswith("\n<div class='wide"), behind[:80]


def test_every_candidate_every_layer_and_every_digest_is_in_a_table() -> None:
    text, evidence = words(FULL), told.full()

    for point in evidence.search:
        assert f"{point.name} {point.quantized} of 53 units" in text
    assert text.count("chosen") >= 1
    for number, layer in enumerate(evidence.layers["int8-rr"], 1):
        differs = " ≠" if layer.real != layer.requested else ""
        assert f"{number} {layer.name} {layer.kind} {layer.requested} {layer.real}{differs}" in text
    for digest in evidence.lineage.values():
        assert digest in text
    assert "14,212,000" in text


def test_a_layer_that_runs_otherwise_than_asked_is_named_and_marked() -> None:
    drawing = plots.precision_map(told.row_of_layers(40))

    assert "Not as asked (≠): features.10.conv.0 (Conv), features.18.conv.2 (Conv)." in words(FULL)
    assert drawing.count('class="differs"') == 2
    assert drawing.count("≠") == 2


def test_the_map_can_be_read_without_colour() -> None:
    drawing = plots.precision_map([Layer(name=k, kind="Conv", requested=k) for k in ("int8", "fp16", "fp32")])

    assert re.findall(r'class="cell-text">([^<]+)<', drawing) == ["8", "?", "16", "?", "32", "?"]


def test_limits_and_budgets_are_drawn_with_their_numbers() -> None:
    for text in ("budget: 0.5 points", "budget: 0.75 x fp32", "limit of the outputs: 15 dB", "c22 (chosen)"):
        assert text in FULL


def test_a_layer_below_the_limit_has_another_shape() -> None:
    layers = [Layer(name=f"l{n}", kind="Conv", requested="int8", sqnr_db=30.0 - 10 * (n == 3)) for n in range(6)]

    drawing = plots.error_of_each_layer(layers, 25.0)

    assert drawing.count('class="bad-mark"') == 1
    assert "4 l3" in drawing


def test_only_layers_among_the_worst_are_named_and_their_names_stand_apart() -> None:
    errors = [30.0] * 40
    errors[4], errors[5], errors[20] = 5.0, 6.0, 7.0  # the second lies beside the first: no room for its name
    layers = [Layer(name=f"layer{n}", kind="Conv", requested="int8", sqnr_db=db) for n, db in enumerate(errors)]

    drawing = plots.error_of_each_layer(layers, None)

    assert re.findall(r">(\d+ layer\d+)<", drawing) == ["5 layer4", "21 layer20"]


def test_what_was_mended_and_what_it_cost_is_said() -> None:
    assert "int8-rr was mended clipped: hardtanh_3 (6.2 → 11.9 dB) kept in floats: node_Conv_815" in words(FULL)
    assert "9 of at most 16 builds; 1 of 53 units are in floats, 1% of the multiplications" in words(FULL)


def test_a_file_on_another_runtime_says_which_and_how_much_faster() -> None:
    assert "int8-vnni is the file of int8-rr on openvino: 0.86 of its time, 0.90 at most" in words(FULL)


# What is not


def test_an_empty_part_says_why_it_is_empty() -> None:
    text = words(BARE)

    assert "no labelled data were given (--eval), so nothing is said about accuracy" in text
    assert "No search was asked for (--max-drop, --max-latency)" in text
    assert "No layer was looked at" in text
    assert "No variant can run on this machine" in text
    assert BARE.count("<svg") == 2  # size and lineage


def test_layers_without_an_error_or_a_look_at_the_runtime_are_shown_without() -> None:
    blind = [Layer(name="a", kind="Conv", requested="int8"), Layer(name="b", kind="Conv", requested="fp32")]

    page = render_html(msgspec.structs.replace(told.full(), layers={"jetson": blind})).decode()

    assert "The layers' errors were not measured." in words(page)
    assert "what the runtime builds of it could not be looked at here" in words(page)
    assert "1 a Conv int8 not looked at -" in words(page)


def test_candidates_that_nothing_here_can_run_are_listed_and_not_drawn() -> None:
    untimed = [msgspec.structs.replace(point, times_fp32=None) for point in told.points()]

    page = render_html(msgspec.structs.replace(told.full(), search=untimed)).decode()

    assert "This machine cannot run its candidates" in words(page)
    assert "c7 10 of 53 units 0% -0.08 unmeasured" in words(page)
    assert page.count("<svg") == FULL.count("<svg") - 1


def test_a_variant_that_was_built_and_is_left_out_is_named_with_the_reason() -> None:
    assert "int8-dotprod is left out: slower than fp32: 1.07 x, at most 1.11" in words(FULL)


def test_a_candidate_alone_and_a_layer_alone_can_be_drawn() -> None:
    (point,) = told.points()[:1]

    assert "1 candidates" in plots.accuracy_against_latency([point], None, None, None)
    assert "error of 1 layers" in plots.error_of_each_layer(told.row_of_layers(2)[:1], None)


# The rows that the terminal shows too


def test_the_table_says_for_each_variant_what_is_to_be_thought_of_it() -> None:
    rows = {row[0]: dict(zip(tables.VARIANT_HEAD, row, strict=True)) for row in tables.variant_rows(told.full())}

    assert list(rows) == ["torch", "fp32", "int8-rr", "int8-vnni"]
    assert rows["int8-rr"]["precision"] == "int8, 53 of 58 layers"
    assert rows["int8-rr"]["accuracy"] == "87.1 % top-1"
    assert rows["int8-rr"]["lost, at most"] == "0.28, 0.47"
    assert rows["int8-rr"]["x fp32, at most"] == "0.68, 0.71"
    assert rows["int8-rr"]["verdict"] == "proved here, mended"
    assert rows["int8-vnni"]["precision"] == "int8, on openvino"
    assert rows["int8-vnni"]["verdict"] == "cannot be shown, needs 420 more samples"


def test_a_column_in_which_nothing_is_said_is_left_out() -> None:
    rows = [("torch", "", "-"), ("fp32", "1.00", "-")]

    assert tables.said_columns(("variant", "x", "lost"), rows) == (["variant", "x"], [("torch", ""), ("fp32", "1.00")])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"proofs": [msgspec.structs.replace(told.proof("int8-rr", 3.0), refused="too far")]}, "refused: too far"),
        ({"accuracy": [told.accuracy("int8-rr", 0.4, 0.9, None)]}, "may lose more than the 0.5 points allowed"),
        ({"accuracy": [], "unmeasured": {"int8-rr": "needs arm64"}}, "unmeasured here: needs arm64"),
        ({"accuracy": [], "proofs": [], "repairs": []}, "not proved here"),
    ],
    ids=["refused", "over budget", "unmeasured", "unproved"],
)
def test_the_worst_is_said_first(change: dict[str, object], says: str) -> None:
    assert tables.verdict(msgspec.structs.replace(told.full(), **change), "int8-rr") == says


def test_a_variant_that_is_slower_than_fp32_is_called_so() -> None:
    slow = [msgspec.structs.replace(t, times_fp32=1.04) if t.model == "int8-rr" else t for t in told.full().timings]

    assert tables.verdict(msgspec.structs.replace(told.full(), timings=slow), "int8-rr").endswith("slower than fp32")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 118.0), (0.68, 0.72), (1e-6, 3e-6)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = Axis(low, high, 0.0, 100.0).ticks()

    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)


# In a real browser

_MEASURE = """<script>
const out = {wide: document.documentElement.scrollWidth - innerWidth, outside: [], small: [], over: [], narrow: []};
for (const svg of document.querySelectorAll('svg')) {
  const box = svg.viewBox.baseVal;
  for (const text of svg.querySelectorAll('text')) {
    const b = text.getBBox();
    if (b.x < -2 || b.y < -2 || b.x + b.width > box.width + 2 || b.y + b.height > box.height + 2)
      out.outside.push(text.textContent);
    if (text.getBoundingClientRect().height < 9) out.small.push(text.textContent);
  }
  const all = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBBox()]);
  all.forEach(([one, a], k) => all.slice(k + 1).forEach(([two, b]) => {
    const x = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
    const y = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
    if (x > 2 && y > 5) out.over.push(one + ' | ' + two);
  }));
}
for (const cell of document.querySelectorAll('td'))
  if (cell.textContent.length > 12 && cell.offsetWidth < 90) out.narrow.push(cell.textContent);
out.rows = document.querySelectorAll('tbody tr').length;
document.body.innerHTML = '<pre id=measured>' + JSON.stringify(out) + '</pre>';
</script>"""


def browse(page: Path, folder: Path, *options: str) -> str:
    chromium = needs.program("chromium", "chromium")
    always = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/chromium"]
    done = subprocess.run(
        [chromium, *always, *options, page.as_uri()], capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.xdist_group("page")
@pytest.mark.parametrize("width", [1100, 500])
def test_nothing_is_cut_off_too_small_or_drawn_over_and_the_page_fits_its_window(tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(FULL.replace("</html>", _MEASURE + "</html>"))

    dom = browse(page, tmp_path, f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom")

    measured = json.loads(unescape(re.findall(r"<pre[^>]*>(.*?)</pre>", dom)[0]))
    assert measured["outside"] == []
    assert measured["small"] == [], "on a phone drawings scroll, they do not shrink"
    assert measured["over"] == []
    assert measured["narrow"] == [], "no column is a word wide"
    assert measured["wide"] <= 0
    assert measured["rows"] > 40 + 58


@pytest.mark.slow
@pytest.mark.xdist_group("page")
def test_it_is_light_on_a_light_screen_dark_on_a_dark_one_and_whole_on_paper(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(FULL)
    brightness = {}
    for name, options in {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}.items():
        shot = tmp_path / f"{name}.png"
        browse(page, tmp_path, *options, "--window-size=1000,2400", f"--screenshot={shot}")
        pixels = np.asarray(Image.open(shot).convert("L"))
        brightness[name] = float(np.median(pixels))
        assert pixels.std() > 10, "something is drawn"
    paper = tmp_path / "page.pdf"
    browse(page, tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}")

    assert brightness["light"] > 240
    assert brightness["dark"] < 60
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) >= 5  # the long tables are whole
