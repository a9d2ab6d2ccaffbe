"""Tasks claim the cells of a sweep: each cell once, whatever becomes of the tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool import files
from hpctool.launch import cells, claims, submit
from hpctool.launch.claims import Claims
from hpctool.launch.sweeplog import CLAIMS, SweepLog
from hpctool.rundir import RunDir, create_run
from tests.launch.toy_slurm import ToySlurm

CODE = {"snapshot": "", "commit": ""}
NUM_CELLS = 12


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """A submission of twelve cells, the fourth and fifth of which were cancelled meanwhile."""
    folder = tmp_path / "runs" / "sweeps" / "toy-0123abcd"
    log = SweepLog(folder)
    indices = list(range(10, 10 + NUM_CELLS))
    number = log.submitting(indices, CLAIMS, CODE, 8)
    log.submitted(number, "7")
    log.cancelled([13, 14])
    ids = [f"toy-{index:08x}" for index in indices]
    body = {"format": 1, "runs": str(tmp_path / "runs"), "cells": indices, "ids": ids}
    path = folder / "submissions" / f"{number:04d}.json"
    path.parent.mkdir()
    files.write_json(path, {**body, "time_s": 600, "signal_delay_s": 60})
    return path


def make_run(submission: Path, position: int, state: str = "", task: str = "7_0") -> RunDir:
    """The folder of a cell that has begun, and ended in that state."""
    runs, index = submission.parent.parent.parent.parent, 10 + position
    run = create_run(runs, {"name": "toy", "identity": f"{index:08x}" * 8, "job": "run", "code": CODE}, {})
    attempt = run.begin({"where": "slurm", "slurm_job_id": task})
    if state:
        run.ledger.append({"kind": "ended", "attempt": attempt, "state": state, "step": 0, "time": ""})
    return run


Ask = Callable[..., int]


@pytest.fixture
def ask(submission: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask as the batch script does; the exit code."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    return lambda *told: claims.main([str(submission), *map(str, told)])


def test_each_cell_has_one_task_and_what_was_cancelled_has_none(submission: Path) -> None:
    first, second = Claims(submission, "7_0"), Claims(submission, "7_1")
    taken: list[int] = []
    while (position := (first if len(taken) % 3 else second).next(taken)) is not None:
        taken.append(position)
    assert taken == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert second.next(taken) is None


@pytest.mark.slow
def test_many_tasks_at_once_never_take_the_same_cell(submission: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from hpctool.launch.claims import Claims\n"
        "mine = Claims(Path(sys.argv[1]), sys.argv[2]); taken = []\n"
        "while (position := mine.next(taken)) is not None: taken.append(position)\n"
        "print(*taken)"
    )
    command = [sys.executable, "-c", program, str(submission)]
    tasks = [subprocess.Popen([*command, f"7_{n}"], stdout=subprocess.PIPE, text=True) for n in range(6)]
    taken = [int(word) for task in tasks for word in task.communicate()[0].split()]
    assert sorted(taken) == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]


def test_a_task_that_comes_back_first_gets_what_it_had_and_had_not_ended(submission: Path) -> None:
    before = Claims(submission, "7_0")
    assert [before.next([]), before.next([0]), before.next([0, 1])] == [0, 1, 2]
    assert Claims(submission, "7_1").next([]) == 5
    make_run(submission, 0, "completed")
    make_run(submission, 1)  # it was running when its node was lost
    back = Claims(submission, "7_0")
    assert [back.next([]), back.next([1]), back.next([1, 2])] == [1, 2, 6]
    # Another loop of the same task has cells of its own.
    assert Claims(submission, "7_0", slot=1).next([]) == 7


def test_a_task_that_comes_back_knows_what_had_failed_before(submission: Path, ask: Ask) -> None:
    for position in range(NUM_CELLS):
        Claims(submission, "7_0").log.append({"task": f"7_{position % 2}", "slot": 0, "time": ""})
        make_run(submission, position, "completed" if position != 2 else "failed")
    assert ask() == 1, "that of a cell which it had before it was requeued"
    assert ask("--slot", 1) == claims.EXIT_NONE_LEFT


def test_what_somebody_else_has_started_or_finished_meanwhile_is_left_alone(submission: Path) -> None:
    make_run(submission, 0, task="99")
    make_run(submission, 1, "completed", task="99")
    make_run(submission, 2, "requeued", task="98")
    assert Claims(submission, "7_0").next([]) == 2


@pytest.mark.slow
def test_the_exit_code_says_why_there_is_no_cell(
    submission: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("--elapsed", 0) == 0
    assert capsys.readouterr().out == "0\n"
    run = make_run(submission, 0)
    # The cell before took 300 of the 600 seconds; 120 before the end the job may be told to stop.
    assert ask("--elapsed", 300, "--tried", "0") == 75
    assert ask("--elapsed", 200, "--tried", "0") == 0
    attempt = run.story().attempt
    run.ledger.append({"kind": "ended", "attempt": attempt, "state": "requeued", "step": 0, "time": ""})
    assert ask("--elapsed", 1, "--tried", "0") == 75  # to be tried once more, which takes a requeue
    run.ledger.append({"kind": "cancel", "by": "me", "time": ""})
    assert ask("--elapsed", 1, "--tried", "0") == 0
    while Claims(submission, "7_1").next([]) is not None:
        make_run(submission, len(SweepLog(submission.parent.parent).claims(1)) - 1, "completed", "7_1")
    for position in (1, 2):
        if not (submission.parent.parent.parent.parent / f"toy-{10 + position:08x}").exists():
            make_run(submission, position, "completed")
    assert ask("--elapsed", 500, "--tried", "0 1 2") == 3


# -- the batch script


SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def project(tmp_path: Path, toy_slurm: ToySlurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program that notes what it is called with, takes its time, and fails at its fifth argument."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "work.sh").write_text("#!/bin/sh\necho $1 >> ran\nsleep ${2:-0}\nexit ${3:-0}\n")
    (folder / "work.sh").chmod(0o755)
    (toy_slurm.folder / "srun").write_text(SRUN)
    (toy_slurm.folder / "srun").chmod(0o755)
    monkeypatch.chdir(folder)
    return folder


def script_of(project: Path, *overrides: str) -> tuple[Path, list[str]]:
    told = ["script=work.sh", "cluster=slurm", "resources.time=10", "cluster.signal_delay_s=20", *overrides]
    answer = submit.submit(submit.Request("run", told), multirun=True, say=lambda _: None)
    return next((Path(answer.folder) / "submissions").glob("*.sh")), answer.runs


def start(script: Path, task: int = 0) -> subprocess.Popen[bytes]:
    """What slurmd does: run the script as the leader of a group, with the variables of a task."""
    names = {"SLURM_ARRAY_JOB_ID": "101", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": "101"}
    environ = {**os.environ, **names, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
    return subprocess.Popen(["bash", str(script)], env=environ, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_the_script_works_through_all_cells_and_fails_if_one_did(
    project: Path, toy_slurm: ToySlurm, at_once: int
) -> None:
    toy_slurm.set("max_array", 2)
    args = "args=[a],[b],[c,0,5],[d]"
    script, runs = script_of(project, args, f"cluster.cells_at_once={at_once}", f"cluster.max_parallel={at_once}")
    assert start(script).wait(timeout=60) == 1
    assert sorted((project / "ran").read_text().split()) == ["a", "b", "c", "d"]
    states = [RunDir(project / "runs" / run).story().state for run in runs]
    assert states == ["completed", "completed", "failed", "completed"]
    assert not list(script.parent.glob("logs/again-*"))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_script_that_is_told_to_stop_claims_no_more_and_asks_to_come_back(
    project: Path, toy_slurm: ToySlurm, at_once: int
) -> None:
    toy_slurm.set("max_array", 2)
    args = "args=[a,30],[b,30],[c],[d]"
    script, _ = script_of(project, args, f"cluster.cells_at_once={at_once}", f"cluster.max_parallel={at_once}")
    scontrol = toy_slurm.folder / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$*" >> {toy_slurm.folder}/scontrol.calls\nexit 1\n')
    process = start(script)
    deadline_s = time.monotonic() + 30
    while not (project / "ran").exists() or len((project / "ran").read_text().split()) < at_once:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    # The toy does not grant the requeue, so the script ends and says that it is to be continued.
    assert process.wait(timeout=60) == 75
    assert sorted((project / "ran").read_text().split()) == ["a", "b"][:at_once]
    assert "requeue incomplete 101_0" in toy_slurm.calls("scontrol")[-1]
    (project / "work.sh").write_text("#!/bin/sh\necho again $1 >> ran\n")
    # A task that comes back begins with what it had.
    snapshot = next((project / "runs" / ".code").glob("*/project/work.sh"))
    snapshot.write_text(f"#!/bin/sh\necho again-$1 >> {project}/ran\n")
    assert start(script).wait(timeout=60) == 0
    again = (project / "ran").read_text().split()[at_once:]
    assert sorted(again) == ["again-a", "again-b", "again-c", "again-d"]
    assert cells.list_sweep_ids(project / "runs")
