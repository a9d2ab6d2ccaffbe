"""Watching runs until they have ended."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from hpctool.launch.cells import find_sweep
from hpctool.launch.wait import Watched, state_table, wait_for
from tests.launch.slurm.stand_ins import StandIns
from tests.track.samples import Sample
from tests.track.sweeps import SWEEP, Cells, queue_of


def watched(sweep: Cells) -> Watched:
    found = find_sweep(sweep.runs, SWEEP)
    one = Watched(sweep.runs, found.run_ids, [found])
    one.look()
    return one


@pytest.mark.slow
def test_each_change_of_state_is_a_line_and_the_end_is_the_end_of_waiting(tmp_path: Path) -> None:
    run = Sample(tmp_path / "runs").submit().begin()
    said: list[str] = []
    later = threading.Timer(0.3, lambda: run.end("failed", "rank 0: no", 7))
    later.start()
    assert wait_for(tmp_path / "runs", [run.id], said.append) == 1
    later.join()
    assert said == [f"{run.id}: running", f"{run.id}: failed at step 7 (rank 0: no)"]


def test_all_that_completed_is_a_success(tmp_path: Path) -> None:
    run = Sample(tmp_path / "runs").submit().begin().log([1]).complete()
    assert wait_for(tmp_path / "runs", [run.id], lambda _: None) == 0


@pytest.mark.slow
def test_waiting_ends_when_slurm_has_ended_a_job_without_a_word(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says()
    slurm.says("7_0|NODE_FAIL|0:0", name="sacct")
    sweep = Cells(tmp_path, 1)
    run = sweep.begin(0)
    said: list[str] = []
    assert wait_for(sweep.runs, [run.id], said.append) == 1
    assert said == [f"{run.id}: failed (its node was lost)"]


@pytest.mark.slow
def test_cells_that_will_never_begin_are_not_waited_for(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(*queue_of("0 PENDING Priority"))
    assert not watched(Cells(tmp_path, 1)).is_over
    slurm.forget()
    slurm.says()
    assert watched(Cells(tmp_path / "gone", 1)).is_over
    assert watched(Cells(tmp_path / "never", 1, mode="")).is_over


def test_only_what_may_have_changed_is_looked_at_again(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(*queue_of("1 RUNNING"))
    sweep = Cells(tmp_path, 2)
    sweep.complete(0, 0.5)
    sweep.begin(1)
    one = watched(sweep)
    ledger = sweep.runs / sweep.run_id(0) / "ledger"
    for path in ledger.iterdir():
        path.unlink()
    one.look()
    assert one.stories[sweep.run_id(0)].state == "completed"


@pytest.mark.slow
def test_five_watchers_for_some_time_ask_slurm_a_few_times(
    slurm: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCTOOL_SQUEUE_EVERY_S", "1")
    slurm.says(*queue_of("0 RUNNING", "1-9 PENDING Priority"))
    sweep = Cells(tmp_path, 10)
    sweep.begin(0)
    one = watched(sweep)
    began_s = time.monotonic()
    while time.monotonic() - began_s < 3.2:
        one.look()
        time.sleep(0.05)
    assert 2 <= len(slurm.calls()) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 20, 2000])
@pytest.mark.parametrize("width", [80, 120])
def test_the_live_table_fits_and_never_cuts_a_number(slurm: StandIns, tmp_path: Path, count: int, width: int) -> None:
    last = [f"1-{count - 1} PENDING QOSMaxJobsPerUserLimit"] if count > 1 else []
    slurm.says(*queue_of("0 RUNNING", *last))
    sweep = Cells(tmp_path, count)
    run = sweep.begin(0)
    run.rundir.ledger.append({"kind": "resumed", "attempt": 1, "step": 12_000, "max_steps": 123_456})
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(state_table(watched(sweep), width))
    text = console.export_text()
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) < 30
    row = next(line for line in lines if run.id in line)
    assert "running" in row
    assert "/123456" in row
    if count > 1:
        assert "its QOS's limit" in text
        assert f"{count - 1} queued" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_table_shortens_the_curve_and_neither_the_id_nor_the_numbers(tmp_path: Path, width: int) -> None:
    run = Sample(tmp_path / "runs").submit().begin()
    run.rundir.ledger.append({"kind": "resumed", "attempt": 1, "step": 12_000, "max_steps": 123_456})
    one = Watched(tmp_path / "runs", [run.id], course=lambda *_: "val/accuracy ▁▂▃▄▅▆▇█▇█▇█ 0.9532")
    one.look()
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(state_table(one, width))
    (row,) = [line for line in console.export_text().splitlines() if run.id in line]
    assert {run.id, "running", "0/123456"} <= set(row.split())
    assert "…" not in row
    assert ("val/accuracy" in row, "0.9532" in row, "▁▂" in row) == (width > 60, width > 60, width == 120)


def test_brackets_in_a_cause_are_shown_as_they_are(tmp_path: Path) -> None:
    run = Sample(tmp_path / "runs").begin().end("failed", "KeyError: [red] f1[/cat]", 1)
    one = Watched(tmp_path / "runs", [run.id], [])
    one.look()
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(state_table(one, 120))
    assert "KeyError: [red] f1[/cat]" in console.export_text()
