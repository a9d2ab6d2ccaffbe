"""Rows of runs: right, quick, and never broken by a broken run."""

from __future__ import annotations

import math
import os
import subprocess
import time
from pathlib import Path

import pytest

from hpctool.errors import UnknownName
from hpctool.track.row import Row, read_row
from hpctool.track.runs import list_rows, select, sort_rows
from tests.track.samples import COMMIT, Sample, sweep_of


def test_a_completed_run_says_what_its_result_says(tmp_path: Path) -> None:
    run = Sample(tmp_path).submit("4711").begin().log(range(10, 101, 10)).complete()
    row = read_row(run.rundir)
    assert (row.id, row.job, row.state, row.cause, row.attempts, row.step) == (run.id, "train", "completed", "", 1, 100)
    assert row.metrics["val/accuracy"] == 0.9
    assert (row.param_digest, row.data_commit, row.slurm_job_id) == ("5a" * 32, COMMIT, "4711")
    assert row.changed == {"model": "cnn", "optim.lr": 0.01}


def test_a_running_run_says_how_far_its_metrics_have_come(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().log(range(10, 101, 10)).checkpoint(50)
    row = read_row(run.rundir)
    assert (row.state, row.step, row.metrics["val/accuracy"]) == ("running", 100, 0.9)


def test_a_resumed_run_is_as_far_as_its_new_attempt(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().log(range(10, 101, 10)).checkpoint(50).begin(50).log([60])
    assert read_row(run.rundir).step == 60
    assert read_row(run.complete().rundir).attempts == 2


def test_a_run_whose_process_is_gone_is_not_running(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    run = Sample(tmp_path).begin(pid=gone.pid).log([10])
    row = read_row(run.rundir)
    assert (row.state, row.cause) == ("requeued", "its process is gone")


def test_a_run_that_begins_again_is_not_judged_by_its_old_result(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().log([10]).complete()
    assert read_row(run.begin().rundir).state == "running"


def test_a_failed_run_shows_why_and_its_last_metrics(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().log([10, 20]).end("failed", "rank 0: ValueError: no")
    row = read_row(run.rundir)
    assert (row.state, row.cause, row.metrics["val/accuracy"]) == ("failed", "rank 0: ValueError: no", 0.9)


def test_cells_that_have_not_started_are_rows_and_those_that_have_are_not_twice(tmp_path: Path) -> None:
    identities = [digit * 64 for digit in "123"]
    sweep_of(tmp_path, "train-5eee0000", identities)
    Sample(tmp_path, "1", sweep="train-5eee0000", cell=0).begin()
    Sample(tmp_path, "2")  # asked for alone, found again by the sweep
    rows = {row.id: row for row in list_rows(tmp_path)}
    assert {row.id: row.state for row in rows.values()} == {
        "train-11111111": "running",
        "train-22222222": "queued",
        "train-33333333": "queued",
    }
    assert rows["train-33333333"].changed == {"optim.lr": 0.003}
    assert [row.cell for row in select(rows.values(), sweep="train-5e", states=["running"])] == [0]
    assert len(select(rows.values(), sweep="train-5e")) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"{ torn"),
        ("run.json", b"[]"),
        ("run.json", b'{"format": 99}'),
        ("run.json", b'{"format": 1, "name": 3}'),
        ("result.json", b""),
        ("result.json", b'{"format": 99, "state": "completed"}'),
        ("result.json", b'{"state": "completed", "metrics": [1]}'),
        ("ledger/0000000001", b"nonsense\n"),
        ("ledger/0000000003", b""),
        ("metrics/1.jsonl", b"\x00\xff\n"),
        ("config.yaml", b"a: [\n"),
    ],
)
def test_one_damaged_file_is_said_and_never_hides_the_other_runs(tmp_path: Path, name: str, content: bytes) -> None:
    bad = Sample(tmp_path, "1").submit().begin().log([10]).complete()
    good = Sample(tmp_path, "2").begin().log([10]).complete()
    if name.startswith("metrics"):
        bad.rundir.result_json.unlink()
    (bad.rundir.path / name).write_bytes(content)
    rows = {row.id: row for row in sort_rows(list_rows(tmp_path), "optim.lr")}
    assert rows[bad.id].config is not None
    assert rows[good.id].state == "completed"
    assert rows[good.id].problems == []
    assert len(rows[bad.id].problems) == 1
    if name == "run.json":
        assert rows[bad.id].state == "broken"


def test_a_damaged_sweep_is_a_broken_row(tmp_path: Path) -> None:
    sweep_of(tmp_path, "train-5eee0000", ["1" * 64])
    (tmp_path / "sweeps" / "train-5eee0000" / "sweep.json").write_text('{"format": 1}')
    Sample(tmp_path, "2")
    assert {row.id: row.state for row in list_rows(tmp_path)} == {
        "train-5eee0000": "broken",
        "train-22222222": "queued",
    }


def test_nothing_is_there_before_the_first_run(tmp_path: Path) -> None:
    assert list_rows(tmp_path / "runs") == []


def rows_with(**values: object) -> list[Row]:
    return [Row(name, plain={"x": value}) for name, value in values.items()]


def test_numbers_sort_as_numbers_and_what_has_none_stands_last(tmp_path: Path) -> None:
    rows = rows_with(a=10, b=9.5, c=None, d=math.nan, e=1e-3, f="word")
    assert [row.id for row in sort_rows(rows, "x")] == ["e", "b", "a", "f", "c", "d"]
    assert [row.id for row in sort_rows(rows, "-x")][:4] == ["f", "a", "b", "e"]


def test_a_column_that_no_run_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().log([10]).complete()
    with pytest.raises(UnknownName, match="Did you mean val/accuracy"):
        sort_rows([read_row(run.rundir)], "-val/acuracy")
    with pytest.raises(UnknownName, match="there is: train"):
        select([read_row(run.rundir)], job="trian")


def test_a_key_of_the_configuration_is_a_column(tmp_path: Path) -> None:
    rows = [read_row(Sample(tmp_path, digit, lr=lr).rundir) for digit, lr in (("1", 0.1), ("2", 1e-5))]
    assert [row.value("optim.lr") for row in sort_rows(rows, "optim.lr")] == [1e-5, 0.1]
    assert rows[0].value("model.width") == 8


@pytest.mark.slow
def test_a_thousand_finished_runs_are_listed_in_a_second_and_few_files_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Sample(tmp_path, "0").submit().begin()
    for step in range(10, 200, 10):
        run.checkpoint(step)
    run.log([200]).complete()
    opened: list[str] = []
    honest = os.open

    def counted(path: Path, flags: int) -> int:
        opened.append(path.name)
        return honest(path, flags)

    monkeypatch.setattr(os, "open", counted)
    start = time.perf_counter()
    for _ in range(1000):
        assert read_row(run.rundir).step == 200
    assert time.perf_counter() - start < 2.0  # a second, on a machine that does nothing else
    assert 3 <= len(opened) / 1000 <= 5
