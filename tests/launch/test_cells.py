"""A cell lives in sweep.json until it starts; its folder then is that of the run that was planned."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hpctool import files
from hpctool.launch import cells, snapshot, submit
from hpctool.launch.overview import cell_stories, quick_stories
from hpctool.launch.sweeplog import LOCAL, SweepLog
from hpctool.rundir import RunDir


class Sweeper:
    """A project folder in which sweeps of `work.sh` run at once, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    def git(self, *arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=self.folder, check=True, capture_output=True)

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


@pytest.mark.slow
def test_a_cell_keeps_the_environment_and_the_uncommitted_changes_of_its_submission(sweep: Sweeper) -> None:
    sweep.git("init")
    sweep.git("add", "work.sh")
    sweep.git("commit", "-m", "one")
    (sweep.folder / "work.sh").write_bytes(b"#!/bin/sh\necho twice\n# \r\n")
    made = sweep("+params.x=1,2")
    for run in (RunDir(sweep.runs / run_id) for run_id in made.run_ids):
        assert run.environment_txt.read_text() == snapshot.installed_packages()
        assert b"+echo twice\n+# \r\n" in run.code_patch.read_bytes()
        assert files.sha256_bytes(run.code_patch.read_bytes()) == run.code()["patch_sha256"]
    # Of one that begins after the code was repaired and submitted again, it is the repair.
    (sweep.folder / "work.sh").write_text("#!/bin/sh\necho repaired\n")
    code = snapshot.take(sweep.runs, sweep.folder).record()
    SweepLog(made.path).submitting([1], LOCAL, code, 1)
    shutil.rmtree(sweep.runs / made.run_ids[1])
    repaired = cells.open_cell(sweep.runs, made.id, 1)
    assert "+echo repaired" in repaired.code_patch.read_text()
    assert repaired.record()["code"] == code
