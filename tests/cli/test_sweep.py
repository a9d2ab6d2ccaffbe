"""`hpctool sweep` as people and programs call it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hpctool import files
from hpctool.cli.runs import group as runs
from hpctool.cli.sweep import group
from hpctool.cli.sweep_view import axis_row
from hpctool.errors import UnknownName
from tests.launch.slurm.stand_ins import StandIns
from tests.track.sweeps import SWEEP, Cells, queue_of


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments, catch_exceptions=False)


def data(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json").stdout)


def half_way(root: Path, slurm: StandIns, count: int) -> Cells:
    """A sweep of which some cells are done, one failed, one runs, and the rest waits."""
    sweep = Cells(root, count)
    num_done = min(count, 20) // 2
    for index in range(num_done):
        sweep.complete(index, 0.5 + index / 100)
    sweep.begin(num_done)
    rest = f"{num_done + 1}-{count - 1} PENDING QOSMaxJobsPerUserLimit"
    slurm.says(*queue_of(f"{num_done} RUNNING", *([rest] if count > num_done + 1 else [])))
    return sweep


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 20, 2000])
@pytest.mark.parametrize("width", [80, 120])
def test_the_status_fits_into_a_terminal(
    root: Path, slurm: StandIns, monkeypatch: pytest.MonkeyPatch, count: int, width: int
) -> None:
    half_way(root, slurm, count)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", str(width))
    lines = call("status", SWEEP).stdout.splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) < 50, "a sweep of thousands is not a list of thousands"
    assert "running" in lines[1]


@pytest.mark.slow
def test_the_status_says_what_people_ask(root: Path, slurm: StandIns) -> None:
    sweep = half_way(root, slurm, 2000)
    sweep.begin(1999).end("failed", "rank 3: RuntimeError: cuda", 7)
    answer = call("status", "train-5e")
    text = answer.stdout
    assert "2000 cells over optim.lr" in text
    assert "10 completed · 1 running · 1988 queued · 1 failed" in text
    assert "to go: a cell takes" in text
    assert f"best val/accuracy 0.59: cell 9, {sweep.run_id(9)}, optim.lr=0.09" in text
    assert "GPU-h" in text
    assert "rank 3: RuntimeError: cuda" in text
    assert "its QOS's limit on jobs per user is reached" in text
    assert "11-1998" in text
    assert "The best 10 of 2000 cells" in answer.stderr
    assert len(call("status", SWEEP, "--cells").stdout.splitlines()) > 2000


@pytest.mark.slow
def test_programs_get_every_cell(root: Path, slurm: StandIns) -> None:
    half_way(root, slurm, 50)
    found = data("status", SWEEP)
    assert len(found["rows"]) == found["cells"] == 50
    assert found["states"] == {"queued": 39, "running": 1, "completed": 10}
    assert found["best"]["cell"] == 9
    assert found["eta_s"] > 0
    assert found["rows"][0]["values"] == {"optim.lr": 0.0}
    assert found["rows"][0]["metrics"]["val/accuracy"] == 0.5
    assert found["hours"]["gpu_hours"] > 0


def test_all_sweeps_are_listed(root: Path, slurm: StandIns) -> None:
    half_way(root, slurm, 20)
    (line,) = call("list").stdout.splitlines()[2:]
    assert line.split()[:3] == [SWEEP, "train", "20"]
    assert "10 completed · 1 running · 9 queued" in line
    assert data("list")[0]["id"] == SWEEP


def test_where_there_are_none_it_says_so(root: Path) -> None:
    answer = call("list")
    assert answer.stdout == ""
    assert "There are no sweeps in" in answer.stderr


@pytest.mark.slow
def test_a_report_tells_what_each_value_came_to(root: Path, slurm: StandIns) -> None:
    half_way(root, slurm, 20)
    lines = call("report", SWEEP).stdout.splitlines()
    row = next(line for line in lines if line.startswith("0.09"))
    assert row.split()[:4] == ["0.09", "1", "1", "0.59"]
    found = data("report", SWEEP)["axes"]["optim.lr"]["0.09"]
    assert (found["completed"], found["best"]) == (1, 0.59)
    assert found["hours"]["gpu_hours"] == pytest.approx(2 * 300 / 3600, rel=0.05)


def test_a_report_with_diverged_cells_tells_the_best_of_the_others(root: Path, slurm: StandIns) -> None:
    slurm.says()
    sweep = Cells(root, 3, loop={"best_metric": "val/loss", "best_mode": "min"})
    for index, accuracy in enumerate((math.nan, 0.75, -math.inf)):
        sweep.complete(index, accuracy)
    row = axis_row(sweep.look().cells, "val/loss", False)
    assert row["best"] == 0.25
    assert math.isnan(row["mean"])
    assert math.isnan(row["spread"])
    lines = call("report", SWEEP).stdout.splitlines()
    assert any(line.split()[:4] == ["0.02", "1", "1", "inf"] for line in lines)
    rows = list(data("report", SWEEP)["axes"]["optim.lr"].values())
    assert [row["best"] for row in rows] == [None, 0.25, "inf"]
    assert rows[0]["mean"] == "nan"


def test_values_that_differ_in_their_fifth_figure_are_rows_of_their_own(root: Path, slurm: StandIns) -> None:
    slurm.says()
    sweep = Cells(root, 3)
    path = root / "runs" / "sweeps" / SWEEP / "sweep.json"
    body = files.read_json(path)
    for cell, value in zip(body["cells"], ("1000.1", "1000.4", "1000.4"), strict=True):
        cell["overrides"] = [f"optim.lr={value}"]
    files.write_json(path, body)
    sweep.complete(0, 0.5)
    assert {key: row["cells"] for key, row in data("report", SWEEP)["axes"]["optim.lr"].items()} == {
        "1000.1": 1,
        "1000.4": 2,
    }
    lines = call("report", SWEEP).stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("1000")] == [["1000.1", "1"], ["1000.4", "2"]]
    assert call("status", SWEEP).stdout.count("1000.4") == 2


def test_programs_get_a_best_cell_that_is_infinite(root: Path, slurm: StandIns) -> None:
    slurm.says()
    sweep = Cells(root, 1)
    sweep.complete(0, -math.inf)
    assert data("status", SWEEP)["best"]["value"] == sweep.look().to_json()["best"]["value"] == "-inf"


@pytest.mark.slow
def test_a_controller_that_is_down_is_one_sentence_and_no_failure(root: Path, slurm: StandIns) -> None:
    half_way(root, slurm, 20)
    slurm.fails("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    answer = call("status", SWEEP)
    assert answer.exit_code == 0
    assert "10 completed · 1 running · 9 queued" in answer.stdout
    (line,) = answer.stderr.splitlines()
    assert "Unable to contact slurm controller" in line


def test_the_log_of_a_cell_without_a_folder_is_that_of_its_job(root: Path, slurm: StandIns) -> None:
    sweep = Cells(root, 3)
    slurm.says()
    slurm.says("7_1|FAILED|127:0", name="sacct")
    folder = root / "runs" / "sweeps" / SWEEP / "submissions" / "logs"
    folder.mkdir(parents=True)
    (folder / "7_1_0_log.out").write_text("module: not found\n")
    answer = CliRunner().invoke(runs, ["logs", sweep.run_id(1)], catch_exceptions=False)
    assert answer.stdout == "module: not found\n"
    assert "it ended with exit code 127" in answer.stderr
    with pytest.raises(UnknownName, match=f"It is a cell of {SWEEP} and cancelled"):
        CliRunner().invoke(runs, ["logs", sweep.run_id(2)], catch_exceptions=False)
