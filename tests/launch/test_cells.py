"""A cell lives in sweep.json until it starts; its folder then is that of the run that was planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpctool.launch import cells, submit
from hpctool.launch.overview import cell_stories, quick_stories


class Sweeper:
    """A project folder in which sweeps of `work.sh` run at once, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    def __call__(self, *overrides: str) -> cells.Sweep:
        told = ["script=work.sh", "cluster=inline", *overrides]
        answer = submit.submit(submit.Request("run", told), True, say=lambda _: None)
        return cells.find_sweep(self.runs, answer.sweep)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeper:
    (tmp_path / "work.sh").write_text("#!/bin/sh\necho $1\n")
    (tmp_path / "work.sh").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPCTOOL_ROOT", raising=False)
    return Sweeper(tmp_path)


@pytest.mark.slow
def test_cells_whose_names_vary_run_under_their_own(sweep: Sweeper) -> None:
    made = sweep("+params.x=1,2,3", "name=exp-${params.x}")
    assert [run_id.rpartition("-")[0] for run_id in made.run_ids] == ["exp-1", "exp-2", "exp-3"]
    assert [story.state for story in cell_stories(sweep.runs, made, quick_stories)] == ["completed"] * 3
    for index, run_id in enumerate(made.run_ids):
        opened = cells.open_cell(sweep.runs, made.id, index)
        assert (opened.id, opened.record()["name"]) == (run_id, f"exp-{index + 1}")


@pytest.mark.slow
def test_keys_may_hold_dots(sweep: Sweeper) -> None:
    made = sweep("+params={a.b: 1, c: {d.e: 0}},{a.b: 2, c: {d.e: 0}}", "name=dots")
    assert len(made.body["bases"]) == 1
    assert [cells.plain_config(made, index)["params"]["a.b"] for index in (0, 1)] == [1, 2]
    assert [story.state for story in cell_stories(sweep.runs, made, quick_stories)] == ["completed"] * 2


@pytest.mark.slow
def test_keys_with_dots_may_differ_from_cell_to_cell(sweep: Sweeper) -> None:
    made = sweep("+params={c: {a.b: 1}},{c: {a.d: 1}},{c: 5}")
    found = [cells.plain_config(made, index)["params"] for index in range(3)]
    assert found == [{"c": {"a.b": 1}}, {"c": {"a.d": 1}}, {"c": 5}]
