"""The first real error of a run whose ranks die of each other: which rank it was, and what it said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpctool.launch.result import current_story, rank_errors
from hpctool.rundir import RunDir
from tests.launch.programs import until
from tests.train.conftest import PROJECT, Attempt, MakeRun

pytestmark = pytest.mark.slow

LOOP = "loop={max_steps: 12, global_batch_size: 24}"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raise", "rank 2: ValueError: row 17 is not what it was"),
        ("exit3", "rank 2: OperationError: Something that the job called has left the program: sys.exit(3)."),
        ("exit0", "rank 2: OperationError: Something that the job called has left the program: sys.exit(0)."),
        ("kill", "rank 2: its process "),
    ],
)
def test_the_rank_that_failed_is_named_and_not_those_that_lost_it(
    make_run: MakeRun, attempt: Attempt, kind: str, fault: str, cause: str
) -> None:
    run = make_run(LOOP, "task._target_=usersown.Faulty", f"parallel={kind}")
    # Not under a queue, which would see by itself who went first.
    codes = attempt(run, 3, FAULT=f"{fault} 2 6", where="inline")
    assert codes == [1, 1, -9 if fault == "kill" else 1]
    errors = {error["rank"]: error["type"] for error in rank_errors(run, 1)}
    assert {errors[0], errors[1]} == {"WorldError"}
    assert run.story().cause.startswith(cause), run.story().cause


def test_a_worker_of_a_rank_that_fails_is_the_error_and_not_that_a_worker_is_gone(
    make_run: MakeRun, attempt: Attempt
) -> None:
    data = ("model=plain", "model.size_in=16", "model.size_out=3", "data.dataset={_target_: usersown.BrokenWaves}")
    run = make_run(LOOP, *data, "loop.num_workers=2", "loop.eval_every_steps=100")
    assert attempt(run, 3, where="inline") == [1, 1, 1]
    words = "OperationError: A worker that reads samples (loop.num_workers) has failed: ValueError: sample 17 cannot be"
    assert words in run.story().cause, run.story().cause


def test_what_a_writer_thread_meets_on_one_rank_is_the_error_on_all(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(LOOP, "task._target_=usersown.Faulty", "loop={max_steps: 400, checkpoint_every_steps: 2}")
    # As a disk that dies: the file of rank 1's own state cannot be made.
    assert attempt(run, 3, where="inline", FAULT="unwritable 1 8") == [1, 1, 1]
    assert "was not saved (Input/output error); the one before it stays" in run.story().cause, run.story().cause


#: what a user types before `hpctool train cluster=inline …`
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node=3", "--no-python"],
    "mpirun": ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "3"],
}


def launched(make_run: MakeRun, how: str, root: Path, fault: str, *overrides: str) -> tuple[RunDir, int, str]:
    """A run whose ranks torchrun or mpirun has started; its exit code and words."""
    made = make_run(LOOP, "task._target_=usersown.Faulty", *overrides)
    [launcher, *options], here = LAUNCHERS[how], Path(sys.executable).parent
    paths = [f"paths.datasets={root}/datasets", f"paths.runs={made.path.parent}", "cluster=inline"]
    more = ["task._target_=usersown.Faulty", *overrides, "--config-dir", str(PROJECT / "conf")]
    command = [f"{here}/{launcher}", *options, f"{here}/hpctool", "train", "data.name=stripes", *paths, LOOP, *more]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "FAULT": fault}
    for _ in range(3):
        done = subprocess.run(command, env=environ, text=True, capture_output=True, timeout=300, check=False)
        # Once of some ten times mpirun itself does not start, whatever it was to run: known of PMIx.
        if "listener thread failed to start" not in done.stderr:
            break
    return made, done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("how", LAUNCHERS)
def test_the_first_error_is_named_whoever_starts_the_ranks(make_run: MakeRun, root: Path, how: str) -> None:
    run, code, said = launched(make_run, how, root, "raise 2 6")
    assert code != 0
    # Who has lost its peers may be ended by the launcher before it has seen why; what is there is the first one's word.
    assert rank_errors(run, 1), said
    assert rank_errors(run, 1)[0]["rank"] == 2, said
    assert rank_errors(run, 1)[0]["message"] == "row 17 is not what it was"
    assert "row 17 is not what it was" in said
    assert until(lambda: current_story(run).cause or None, 10).startswith("rank 2: ValueError: row 17")


def test_a_hang_under_torchrun_is_named_and_ends_for_a_requeue(make_run: MakeRun, root: Path) -> None:
    hang = "cluster.hang={step_s: 4, step_p95: 1, first_step_min: 0.1}"
    run, code, said = launched(make_run, "torchrun", root, "hang 2 8", hang)
    assert code != 0
    assert run.story().cause == "hang: rank 2 stands in step 6 (forward), the others wait in step 6 (backward)", said
    assert run.story().state == "requeued"
