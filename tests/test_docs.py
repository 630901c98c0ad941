"""What the pages tell a reader to type exists: every command and option in them is parsed by the real parsers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tomllib

from cloud_hub.cli import parser as hub_parser
from compiler.cli import parser as compile_parser
from compiler.comparison.cli import parser as compare_parser
from compiler.sources.recipe import Recipe
from compiler.targets.cli import parser as targets_parser
from edge_agent.cli import parser as agent_parser
from edge_agent.config import AgentConfig
from skerry import inspect
from skerry.config import convert
from skerry.fleet.cli import parser as fleet_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("models/*/README.md"))]
PARSERS = {
    "compile": compile_parser,
    "targets": targets_parser,
    "compare": compare_parser,
    "agent": agent_parser,
    "inspect": inspect.parser,
    "hub": hub_parser,
    "fleet": fleet_parser,
}


def commands():
    """Each `skerry …` line in a fenced block: page and words."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                if line.startswith("skerry ") and line != "skerry doctor":  # it has no options
                    yield pytest.param(shlex.split(line, comments=True), id=f"{page.name}: {line}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_on_a_page_is_one(words):
    PARSERS[words[1]]().parse_args(words[2:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(make [a-z]+)", (ROOT / "README.md").read_text()))))
def test_every_make_target_on_the_page_exists(path):
    assert re.search(rf"^[a-z ]*\b{path.split()[1]}\b[a-z ]*:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("page", "schema"), [("compile.md", Recipe), ("agent.md", AgentConfig)])
def test_every_key_in_a_pages_example_is_one(page, schema):
    (example,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    convert(tomllib.loads(example), schema, page)
