"""Configuration: a closed schema, and errors that name the key."""

from __future__ import annotations

import pytest

from edge_agent.config import check, load
from skerry.errors import ConfigError

LEAST = {"data": "/d", "trust": []}


def test_the_least_that_must_be_said_is_where_the_data_lies():
    config = check(LEAST, "test")
    assert config.threads >= 1
    assert config.events.when == "change"
    with pytest.raises(ConfigError, match="missing required field `data`"):
        check({"trust": []}, "agent.toml")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"api": {"port": 99999}}, r"agent.toml: .*<= 65535.*\$\.api\.port"),
        ({"thread": 2}, r"unknown field `thread`"),
        ({"sources": [{"url": "a.mp4", "policy": "newest"}]}, r"newest.*\$\.sources\[0\]\.policy"),
        ({"probation": {"seconds": 0}}, r"> 0.*\$\.probation\.seconds"),
        ({"events": {"sync_ms": 500}}, r"<= 200.*\$\.events\.sync_ms"),
        ({"proof": {"limits": {"min_sqnr_db": 1.0}}}, r"tighter"),
        ({"sources": [{"url": "x/a.mp4"}, {"url": "y/a.mp4"}]}, r"two sources have one name"),
    ],
)
def test_a_wrong_value_is_named(values, says):
    with pytest.raises(ConfigError, match=says):
        check({**LEAST, **values}, "agent.toml")


def test_options_win_over_the_file_key_by_key(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('data = "/d"\ntrust = ["a.pub"]\n[events]\nwhen = "every"\nmin_score = 0.5\n')
    config = load(path, {"events": {"jsonl": "out.jsonl"}, "api": {"port": 8080}})
    assert (config.events.when, config.events.jsonl, config.api.port) == ("every", "out.jsonl", 8080)


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text("data = \n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(path, {})
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "absent.toml", {})
