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


def test_paths_of_the_closing_table_stay_whole_and_begin_where_the_reader_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    story = Story(OmegaConf.create({"flywheel": {"name": "digits"}}), RunDir(tmp_path))
    story.stage, story.seconds = "evaluate", {"prepare": 3.4, "evaluate": 61.0}
    inside, outside = "runs/2026-11-28T14-00-00-evaluate-1a2b3c4d/artifacts", "/scratch/models/digits/v000012"
    story.reached("accuracy 0.97", tmp_path / inside)
    story.reached("and once more", outside)
    closing_table(story)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "What was reached",
        "  evaluate  61 s  accuracy 0.97",
        f"                  {inside}",
        "                  and once more",
        f"                  {outside}",
    ]
