from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hpctool import files
from hpctool.files import sha256_bytes
from hpctool.launch import local
from hpctool.launch.result import process_start
from hpctool.launch.submit import Request, submit
from hpctool.rundir import RunDir
from tests.launch.conftest import Bench, MakeRun, notes
from tests.launch.programs import until

pytestmark = pytest.mark.slow  # whole commands and processes

SHORT = "begin(); note('from'); time.sleep(0.4); note('to'); end('completed')"
LONG = "on(signal.SIGTERM, lambda: end('requeued', 'preempted', 75)); begin(); note('from'); time.sleep(60)"


def most_at_once(runs: list[RunDir]) -> int:
    """How many of the runs were between `from` and `to` at the same moment."""
    events = sorted((when, 1 if text == "from" else -1) for run in runs for _, when, text in notes(run))
    busy = [sum(change for _, change in events[: n + 1]) for n in range(len(events))]
    return max(busy)


def ends(run: RunDir) -> list[tuple[int, str, str]]:
    return [(e["attempt"], e["state"], e["cause"]) for e in run.story().of_kind("ended")]


def is_noted(run: RunDir, text: str = "from", times: int = 1) -> Any:
    return until(lambda: sum(t == text for _, _, t in notes(run)) >= times)


@pytest.mark.slow
def test_no_more_runs_of_a_submission_at_once_than_it_allows(bench: Bench, make_run: MakeRun) -> None:
    runs = [make_run(SHORT, f"toy{n}") for n in range(6)]
    bench.enqueue(*(bench.ticket(run, max_parallel=2) for run in runs))
    bench.wait(*runs)
    assert most_at_once(runs) == 2
    assert {run.story().state for run in runs} == {"completed"}


def test_submissions_do_not_wait_for_each_other(bench: Bench, make_run: MakeRun) -> None:
    runs = [make_run(LONG, f"toy{n}") for n in range(3)]
    for run in runs:
        bench.enqueue(bench.ticket(run, max_parallel=1))
    for run in runs:
        is_noted(run)
    for run in runs:
        assert local.cancel(bench.runs, run.id)
    bench.wait(*runs)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_run_comes_back(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("""
        begin()
        note(f"pid {os.getpid()}")
        if story.checkpoints:
            end("completed")
        if rank == 0:
            while (run.path / "notes").read_text().count("pid") < 3:  # the others have looked for checkpoints
                time.sleep(0.02)
            checkpoint(3)
        time.sleep(60)
        """)
    bench.enqueue(bench.ticket(run, num_ranks=3))
    until(lambda: len(notes(run)) == 3 and run.story().checkpoints)
    pids = {rank: int(text.split()[1]) for rank, _, text in notes(run)}
    os.kill(pids[1], signal.SIGKILL)
    bench.wait(run)
    assert ends(run) == [(1, "requeued", "rank 1 was killed by SIGKILL"), (2, "completed", "")]
    assert not any(process_start(pid) for pid in pids.values())
    assert run.story().of_kind("ended")[0]["exit_code"] == -9


def test_the_same_failure_at_the_same_step_twice_ends_the_run(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("begin(); os.kill(os.getpid(), signal.SIGSEGV)")
    bench.enqueue(bench.ticket(run, max_failures=9))
    bench.wait(run)
    first, second = ends(run)
    assert first == (1, "requeued", "rank 0 was killed by SIGSEGV")
    assert second[:2] == (2, "failed")
    assert "the same happened before at step 0" in second[2]
    assert run.result() is not None


def test_a_run_that_gets_on_may_be_killed_any_number_of_times(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("""
        begin()
        checkpoint(attempt)
        end("completed") if attempt == 5 else os.kill(os.getpid(), signal.SIGKILL)
        """)
    bench.enqueue(bench.ticket(run, max_failures=1))
    bench.wait(run)
    assert run.story().state == "completed"
    assert run.story().attempt == 5


@pytest.mark.slow
def test_a_users_exception_is_not_tried_again_and_the_rank_is_named(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("""
        begin()
        if rank == 1:
            time.sleep(0.2)
            from hpctool import files
            path = RunDir(run.path, run.story().attempt).error(1)
            path.parent.mkdir(parents=True)
            files.write_json(path, {"rank": 1, "type": "ValueError", "message": "no such lamp", "time": now()})
            sys.exit(1)
        on(signal.SIGTERM, lambda: sys.exit(1))
        time.sleep(60)
        """)
    bench.enqueue(bench.ticket(run, num_ranks=2))
    bench.wait(run)
    assert ends(run) == [(1, "failed", "rank 1: ValueError: no such lamp")]


def test_a_program_that_ends_before_it_has_begun_says_so_with_its_last_words(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("sys.exit('no module of this name')")
    bench.enqueue(bench.ticket(run))
    bench.wait(run)
    assert ends(run) == [(0, "failed", "rank 0 failed: no module of this name (logs/starting-0.log)")]


@pytest.mark.slow
def test_a_time_limit_saves_and_goes_on_at_once(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("""
        on(signal.SIGUSR2, lambda: (checkpoint(attempt), end("requeued", "timeout", 75)))
        begin()
        if attempt == 3:
            end("completed")
        time.sleep(60)
        """)
    bench.enqueue(bench.ticket(run, time_s=1.5, signal_delay_s=0.8))
    bench.wait(run)
    assert ends(run) == [(1, "requeued", "timeout"), (2, "requeued", "timeout"), (3, "completed", "")]


@pytest.mark.slow
def test_a_time_limit_that_brings_nothing_is_given_up(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("begin(); time.sleep(60)")
    bench.enqueue(bench.ticket(run, time_s=1.0, signal_delay_s=0.5))
    bench.wait(run)
    assert [(attempt, state) for attempt, state, _ in ends(run)] == [(1, "requeued"), (2, "failed")]
    assert ends(run)[0][2] == "the time limit came before the run had saved and stopped"


def test_what_was_told_to_stop_by_somebody_else_comes_back(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("""
        on(signal.SIGTERM, lambda: end("requeued", "preempted", 75))
        begin()
        note(f"pid {os.getpid()}")
        end("completed") if attempt == 2 else time.sleep(60)
        """)
    bench.enqueue(bench.ticket(run))
    until(lambda: notes(run))
    os.kill(int(notes(run)[0][2].split()[1]), signal.SIGTERM)
    bench.wait(run)
    assert ends(run) == [(1, "requeued", "preempted"), (2, "completed", "")]


@pytest.mark.slow
@pytest.mark.parametrize("moment_s", [0.0, 0.15, 0.4, 0.8])
def test_a_killed_supervisor_loses_nothing_and_doubles_nothing(
    bench: Bench, make_run: MakeRun, moment_s: float
) -> None:
    runs = [make_run(SHORT, f"toy{n}") for n in range(4)]
    bench.enqueue(*(bench.ticket(run, num_ranks=2, max_parallel=2) for run in runs))
    until(bench.supervisor)
    time.sleep(moment_s)
    bench.kill_supervisor()
    local.ensure_running(bench.runs)
    bench.wait(*runs)
    for run in runs:
        assert [state for _, state, _ in ends(run)].count("completed") == 1
        # An attempt may be cut off after its `to` and before its ledger says so; but nothing of it overlaps with what
        # came after it.
        begun = [when for rank, when, text in notes(run) if rank == 0 and text == "from"]
        done = [when for rank, when, text in notes(run) if rank == 0 and text == "to"]
        assert sum(when > max(begun) for when in done) == 1
        assert len(done) <= len(begun)


def test_orphans_of_a_killed_supervisor_are_ended_before_their_run_comes_back(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("""
        begin()
        note(f"pid {os.getpid()}")
        end("completed") if attempt == 2 else time.sleep(60)
        """)
    bench.enqueue(bench.ticket(run))
    until(lambda: notes(run))
    orphan = int(notes(run)[0][2].split()[1])
    bench.kill_supervisor()
    assert process_start(orphan)
    assert [row["state"] for row in local.status(bench.runs)] == ["running"]
    bench.wait(run)  # whoever waits starts a new one
    assert not process_start(orphan)
    assert ends(run) == [(1, "requeued", "its supervisor was gone"), (2, "completed", "")]


def test_a_supervisor_that_is_told_to_end_lets_runs_save_and_keeps_them(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(LONG)
    bench.enqueue(bench.ticket(run))
    is_noted(run)
    bench.kill_supervisor(signal.SIGTERM)
    assert ends(run) == [(1, "requeued", "preempted")]
    assert [row["state"] for row in local.status(bench.runs)] == ["queued"]
    local.ensure_running(bench.runs)
    is_noted(run, times=2)
    assert local.cancel(bench.runs, run.id)
    bench.wait(run)


def test_cancelled_in_the_queue_it_never_runs(bench: Bench, make_run: MakeRun) -> None:
    first, second = make_run(LONG, "first"), make_run(SHORT, "second")
    bench.enqueue(bench.ticket(first, max_parallel=1), bench.ticket(second, max_parallel=1))
    is_noted(first)
    assert local.cancel(bench.runs, second.id)
    assert second.story().state == "cancelled"
    assert local.cancel(bench.runs, first.id)
    bench.wait(first, second)
    assert not notes(second)
    assert not local.cancel(bench.runs, second.id)


def test_cancelled_while_it_runs_it_may_save_and_never_comes_back(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(LONG)
    bench.enqueue(bench.ticket(run))
    is_noted(run)
    assert local.cancel(bench.runs, run.id)
    bench.wait(run)
    story = run.story()
    assert story.state == "cancelled"
    assert story.cause.startswith("cancelled by ")
    assert [e.body["kind"] for e in story.entries] == ["begun", "cancel", "ended"]
    assert len(notes(run)) == 1


def test_cancelled_with_its_supervisor_dead_it_ends_all_the_same(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(LONG)
    bench.enqueue(bench.ticket(run))
    is_noted(run)
    bench.kill_supervisor()
    assert local.cancel(bench.runs, run.id)
    bench.wait(run)
    assert run.story().state == "cancelled"
    assert len(notes(run)) == 1


def test_enqueued_twice_it_runs_once(bench: Bench, make_run: MakeRun) -> None:
    runs = [make_run(SHORT, f"toy{n}") for n in range(2)]
    for _ in range(3):
        bench.enqueue(*(bench.ticket(run, max_parallel=1) for run in runs))
    bench.wait(*runs)
    assert [len(ends(run)) for run in runs] == [1, 1]


def test_enqueued_again_while_it_runs_it_waits_and_sees_that_all_is_done(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(SHORT)
    bench.enqueue(bench.ticket(run))
    is_noted(run)
    bench.enqueue(bench.ticket(run))
    bench.wait(run)
    assert [text for _, _, text in notes(run)] == ["from", "to"]


def test_enqueued_again_a_failed_run_runs_again_and_a_completed_one_does_not(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("begin(); end('failed', 'no lamp', 1) if attempt == 1 else end('completed')")
    for _ in range(3):
        bench.enqueue(bench.ticket(run))
        bench.wait(run)
    assert [state for _, state, _ in ends(run)] == ["failed", "completed"]


def test_a_cell_gets_its_folder_when_it_starts(bench: Bench, make_run: MakeRun) -> None:
    identity = [sha256_bytes(bytes([n])) for n in range(3)]
    code = {"commit": "", "dirty": False, "snapshot": "none", "patch_sha256": ""}
    cells = [
        {"index": n, "run": f"toy-{identity[n][:8]}", "identity": identity[n], "base": 0, "set": {}, "overrides": []}
        for n in range(3)
    ]
    body = {"format": 1, "id": "toy-sweep", "job": "toy", "name": "toy", "varied": [], "sweep": "toy-sweep"}
    sweep = bench.runs / "sweeps" / "toy-sweep"
    sweep.mkdir(parents=True)
    body |= {"code": code, "cwd": str(bench.runs), "bases": [{"name": "toy", "seed": 0}], "cells": cells}
    files.write_json(sweep / "sweep.json", body)
    bench.enqueue(*(bench.ticket(sweep="toy-sweep", cell=n, max_parallel=1) for n in range(3)))
    # These cells have no program; what counts is that each was made, tried and honestly failed.
    assert not local.wait(bench.runs, ["toy-sweep"], timeout_s=20)
    runs = [RunDir(bench.runs / str(cell["run"])) for cell in cells]
    assert [run.story().state for run in runs] == ["failed"] * 3
    assert "program.py" in runs[0].story().cause


def test_a_run_whose_folder_is_removed_ends_and_is_not_made_again(bench: Bench, make_run: MakeRun) -> None:
    run, other = make_run(LONG, "first"), make_run(SHORT, "other")
    bench.enqueue(bench.ticket(run, max_parallel=1), bench.ticket(other, max_parallel=1))
    is_noted(run)
    run.path.rename(bench.runs.parent / "elsewhere")
    os.kill(local.status(bench.runs)[0]["pids"][0], signal.SIGKILL)
    bench.wait(run, other)
    assert not run.path.exists()
    assert other.story().state == "completed"


def test_a_queue_whose_folder_is_removed_takes_its_supervisor_and_runs_along(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("begin(); note(f'pid {os.getpid()}'); time.sleep(60)")
    bench.enqueue(bench.ticket(run))
    until(lambda: notes(run))
    pid, supervisor = int(notes(run)[0][2].split()[1]), until(bench.supervisor)
    bench.queue.folder.rename(bench.runs / "elsewhere")
    until(lambda: not process_start(pid) and not process_start(supervisor))


@pytest.mark.slow
def test_enqueued_just_as_the_supervisor_ends_it_runs(bench: Bench, make_run: MakeRun) -> None:
    for n in range(6):
        run = make_run("begin(); end('completed')", f"toy{n}")
        bench.enqueue(bench.ticket(run))
        assert not local.wait(bench.runs, [run.id], timeout_s=10)
        time.sleep(1.85 + n * 0.05)  # its idle time is two seconds


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_job_of_three_ranks_survives_the_kill_of_one(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPCTOOL_ROOT", raising=False)
    submit(Request("prepare", ["data.name=digits"]), say=print)
    budget = ["loop.max_steps=120", "loop.checkpoint_every_steps=20", "resources.tasks_per_node=3"]
    submitted = submit(Request("train", ["cluster=local", "data.name=digits", *budget]), say=print)
    run = RunDir(bench.runs / submitted.runs[0])
    until(lambda: run.story().checkpoints, timeout_s=120)
    os.kill(local.status(bench.runs)[0]["pids"][1], signal.SIGKILL)
    bench.wait(run, timeout_s=120)
    story = run.story()
    assert (story.state, story.attempt, story.step) == ("completed", 2, 120)
    assert ends(run)[0] == (1, "requeued", "rank 1 was killed by SIGKILL")
