"""What YAML misreads is refused with the line it stands in, and what is meant is left in peace."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING, OmegaConf

from hpctool import config, yamltraps
from hpctool.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "key", "number"),
    [
        ("time: 4:00:00", "time", "14400"),
        ("resources:\n  nodes: 1\n  time: 1:30  # an hour and a half", "resources.time", "90"),
        ("resources: {time: 190:20:30}", "resources.time", "685230"),
        ("account: 00123", "account", "83"),
        ("params:\n  lr: [1, 0_17]", "params.lr", "15"),
    ],
)
def test_a_number_to_another_base_is_refused_with_its_line(tmp_path: Path, text: str, key: str, number: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"# a file of somebody's own\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        yamltraps.check_file(path)
    assert caught.value.key == key
    assert f"takes for the number {number}. Write" in str(caught.value)
    assert f"{path}, line {2 + text.split('  # ')[0].count(chr(10))}" in str(caught.value)


FINE = ['time: "4:00:00"', "time: '1:30'", "time: 1-12:00:00", "steps: 10_000", "a: 0", "b: 0.5", "c: 0x1f", "d: 0o17"]
ODD = ["e", "f: 10.0.0.1", "g: 08", "h: 2026-11-28", "i: [1, 2", "j: !other 4:00:00 x", "k: a 4:00:00"]


@pytest.mark.parametrize("text", [*FINE, *ODD])
def test_what_is_meant_so_is_left_in_peace(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    yamltraps.check_file(path)
    yamltraps.check_file(tmp_path / "there is none.yaml")


def test_a_time_without_quotes_in_a_users_choice_is_refused_when_it_is_chosen(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "resources").mkdir(parents=True)
    (conf / "resources" / "long.yaml").write_text("defaults: [cpu, _self_]\ntime: 4:00:00\n")
    config.compose("run", [], [conf])
    with pytest.raises(ConfigError, match=r"long\.yaml, line 2, has 4:00:00 without quotes"):
        config.compose("run", ["resources=long"], [conf])


@dataclass
class Inner:
    partition: str | None = MISSING
    hold: bool = MISSING


@dataclass
class Outer:
    comment: str = MISSING
    inner: Inner = field(default_factory=Inner)


def test_true_is_no_text() -> None:
    good = {"comment": "on", "inner": {"partition": None, "hold": True}}
    assert config.typed(OmegaConf.create(good), Outer).comment == "on"
    with pytest.raises(ConfigError, match="'comment': it takes a text and got true"):
        config.typed(OmegaConf.create({"comment": True, "inner": {"partition": "a", "hold": True}}), Outer)
    with pytest.raises(ConfigError, match=r"'inner\.partition': it takes a text and got false"):
        config.typed(OmegaConf.create({"comment": "a", "inner": {"partition": False, "hold": True}}), Outer)
