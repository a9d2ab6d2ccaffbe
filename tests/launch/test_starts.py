"""A start that was frozen before its attempt began does not take the run from a later one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hpctool.launch import local, starts
from hpctool.launch.ranks import TASK
from hpctool.log import Entry
from hpctool.rundir import RunDir
from tests.launch.conftest import Bench
from tests.launch.programs import Rank, noted, of_script, until

#: A rank of the local queue that is stopped (SIGSTOP, by itself) before it has done anything.
FROZEN = (
    *(sys.executable, "-c"),
    "import os, signal, sys; os.kill(os.getpid(), signal.SIGSTOP); os.execv(sys.argv[1], sys.argv[1:])",
    *TASK,
)
WAITS = """
    note("pid")
    while not os.path.exists(os.environ["HPCTOOL_RUN"] + "/go"):
        time.sleep(0.02)
    """


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.slow
def test_a_start_that_was_frozen_before_it_began_leaves_the_run_to_the_one_that_runs(
    bench: Bench, here: Path, rank: Rank
) -> None:
    run = of_script(here, WAITS)
    local.enqueue(bench.runs, [bench.ticket(run)], command=FROZEN)
    (frozen,) = until(lambda: [pid for row in local.status(bench.runs) for pid in row["pids"]])
    until(lambda: is_stopped(frozen))
    # As the queue of another host would start it, after this one was lost.
    running = rank(run, HPCTOOL_WHERE="local", **starts.said(run.id, run.story().last))
    assert noted(run, "pid")
    os.kill(frozen, signal.SIGCONT)
    bench.wait(run)
    assert "this start came too late: attempt 1 is another's" in bench.log()
    said = (run.path / "logs" / "starting-0.log").read_text()
    assert "comes too late: attempt 1 has begun by a later one. It ends here." in said
    assert (run.story().state, len(run.story().of_kind("begun")), run.result()) == ("running", 1, None)
    (run.path / "go").touch()
    assert running.wait(60) == 0
    assert (run.story().state, run.story().attempt) == ("completed", 1)
    assert (run.result() or {})["state"] == "completed"


@pytest.mark.slow
def test_a_job_of_slurm_that_wakes_up_after_its_requeue_has_begun_ends_without_a_word_in_the_ledger(
    here: Path, rank: Rank
) -> None:
    run = of_script(here, WAITS)
    run.ledger.append({"kind": "submitted", "where": "slurm", "slurm_job_id": "71", "cluster": "", "time": ""})
    of_job = {"HPCTOOL_WHERE": "slurm", "SLURM_JOB_ID": "71", "SLURM_CLUSTER_NAME": ""}
    first = rank(run, **of_job)
    os.kill(first.pid, signal.SIGSTOP)
    second = rank(run, **of_job, SLURM_RESTART_COUNT="1")
    assert noted(run, "pid")
    before = len(run.story().entries)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(60) == 1
    assert len(run.story().entries) == before
    (run.path / "go").touch()
    assert second.wait(60) == 0
    assert [body["restart_count"] for body in run.story().of_kind("begun")] == [1]


def ledger(*bodies: dict[str, Any]) -> list[Entry]:
    return [Entry(number, body) for number, body in enumerate(bodies, 1)]


def submitted(job: str, array: str = "") -> dict[str, Any]:
    return {"kind": "submitted", "where": "slurm", "slurm_job_id": job, "array": array, "cluster": "c"}


def begun(attempt: int, job: str, restarts: int = 0) -> dict[str, Any]:
    return {"kind": "begun", "attempt": attempt, "slurm_job_id": job, "restart_count": restarts, "cluster": "c"}


TYPED: dict[str, Any] = {"kind": "begun", "attempt": 1, "slurm_job_id": "", "restart_count": 0, "cluster": ""}
HERE: dict[str, Any] = {"kind": "submitted", "where": "local"}


@pytest.mark.parametrize(
    ("entries", "job", "restarts", "newest"),
    [
        ([submitted("7"), begun(1, "7")], "7", 1, 0),  # requeued, as ever
        ([submitted("7"), begun(1, "7", 1)], "7", 0, 1),
        ([submitted("7"), begun(1, "7", 1)], "7", 1, 0),  # a second step of the same start
        ([submitted("7"), submitted("8")], "7", 0, 0),  # what replaces it has not begun
        ([submitted("7"), submitted("8"), begun(1, "8")], "7", 0, 1),
        ([submitted("7"), begun(1, "8"), submitted("8")], "7", 0, 1),  # written down after it had begun
        ([submitted("7"), begun(1, "7"), submitted("8")], "8", 0, 0),
        ([submitted("7"), HERE, TYPED], "7", 0, 1),  # on with it in the local queue
        ([submitted("7"), TYPED], "7", 0, 0),  # typed while the job was waiting: the job goes on with it
        ([submitted("7"), begun(1, "7", 1), submitted("7")], "7", 0, 0),  # a cluster that counts from 1 again
        ([submitted("9"), begun(1, "9")], "8", 0, 1),  # by hand, before the other was submitted
        ([submitted("9"), begun(1, "9")], "10", 0, 0),  # by hand, after it
        ([submitted("", "9"), begun(1, "9_4")], "8_1", 0, 1),  # any task of the array claims the cell
        ([begun(1, "9_4")], "8_1", 0, 0),  # a worker takes over what that of another array had
    ],
)
def test_which_start_is_later_under_slurm(entries: list[Any], job: str, restarts: int, newest: int) -> None:
    assert starts.later(ledger(*entries), starts.Start(job, restarts, "c")) == newest


def test_what_is_typed_here_is_meant_and_the_environment_of_another_run_is_not_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "a-11111111")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(starts.START, starts.said(run.id, 0)[starts.START])
    entries = ledger(TYPED)
    assert [starts.later(entries, starts.own(run.id, where)) for where in ("local", "inline")] == [1, 0]
    assert starts.later(entries, starts.own("b-11111111", "local")) == 0
