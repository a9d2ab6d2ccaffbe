"""The telling of the loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpctool.flywheel.story import Story, closing_table
from hpctool.rundir import RunDir


def test_a_table_takes_numbers_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = Story(OmegaConf.create({"flywheel": {"name": "digits"}}), RunDir(tmp_path))
    story.table(["run", "optim.lr", "seed"], [["train-1a2b", 0.003, 7]])
    lines = capsys.readouterr().out.split()
    assert lines[-3:] == ["train-1a2b", "0.003", "7"]


def test_names_with_brackets_are_told_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = Story(OmegaConf.create({"flywheel": {"name": "digits"}}), RunDir(tmp_path))
    story.table(["run", "f1[/cat]"], [["[red] fox", 0.5]])
    story.reached("best of x[/a]", "/runs/[red]")
    closing_table(story)
    told = capsys.readouterr().out
    for words in ("f1[/cat]", "[red] fox", "x[/a]", "/runs/[red]"):
        assert words in told
