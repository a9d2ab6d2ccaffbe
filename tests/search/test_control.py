"""Searches that are there: what they answer, more workers, another attempt, a cancel."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from hpctool.errors import InputError
from hpctool.launch import closing, parents, snapshot
from hpctool.launch.cells import read_sweep
from hpctool.launch.plan import Request
from hpctool.launch.sweeplog import SweepLog
from hpctool.place import Place
from hpctool.rundir import RunDir
from hpctool.search import control, submit
from hpctool.search.journal import Journal
from hpctool.search.spec import read_spec
from hpctool.world import World
from tests.launch.conftest import Bench
from tests.search.conftest import ASHA, SPACE, Ask, start, worker

#: Whole runs, each with its folder: a dozen take seconds of CPU.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_trial_keeps_the_environment_and_the_uncommitted_changes_of_its_search(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("a = 1\n")
    for words in (["init"], ["add", "mine.py"], ["commit", "-m", "one"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "mine.py").write_text("a = 2\n")
    found = ask("search=random", *SPACE, "search.budget.max_trials=1")
    run = RunDir(found.runs / found.journal().state.trials[0].run)
    assert run.environment_txt.read_text() == snapshot.installed_packages()
    assert "+a = 2" in run.code_patch.read_text()


def test_a_search_none_of_whose_trials_was_any_good_exits_with_1(ask: Ask) -> None:
    words = ("search=random", *SPACE, "search.budget.max_trials=2")
    assert ask(*words, "fail=ValueError").exit_code == 1
    assert ask(*words).exit_code == 0


def test_so_does_one_in_the_local_queue_for_whoever_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPCTOOL_ROOT", raising=False)
    (tmp_path / "work.sh").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "work.sh").chmod(0o755)
    words = ["script=work.sh", "+params.x=interval(0,1)", "search=random", "search.metric=loss", "search.mode=min"]
    words += ["search.budget.max_trials=1", "search.workers=1", "cluster=local", "cluster.wait=true"]
    try:
        answer = submit.submit(Request("run", words), True, say=print)
    finally:
        Bench(tmp_path / "runs").take_down()
    folder = Path(answer.folder)
    assert Journal(folder, read_spec(folder)).read().trials[0].state == "failed"
    assert answer.exit_code == 1


def test_a_cancelled_search_begins_nothing_and_goes_on_when_it_is_resumed(ask: Ask) -> None:
    found = ask(*ASHA, "search.budget.max_trials=2", start=False)
    said: list[str] = []
    control.cancel(found.runs, found.spec.id, said.append)
    worker(found, 0)
    assert found.journal().state.trials == {}
    assert found.journal().state.stopped.startswith("cancelled by ")
    control.resume(found.runs, found.spec.id, said.append)
    assert len(found.journal().state.trials) == 2


def test_a_trial_that_failed_on_another_rank_is_trained_when_it_is_tried_again(ask: Ask) -> None:
    found = ask("search=random", *SPACE, "step_s=0.1", "search.budget.max_trials=1", start=False)
    first = start(found, 0)
    while not (trials := found.journal().state.trials) or not RunDir(found.runs / trials[0].run).story().attempt:
        time.sleep(0.01)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    run = RunDir(found.runs / trials[0].run, attempt=1)
    # What rank 1 leaves behind, whose error the others cannot hear of.
    closing.write_error(run, World(Place(rank=1, size=2)), ValueError("only here"))
    assert worker(found, 0) == 0
    assert found.journal().state.trials[0].cause == "rank 1: ValueError: only here"
    control.retry(found.runs, found.spec.id, print)
    assert (run.story().state, found.journal().state.trials[0].state) == ("completed", "completed")


def test_a_search_may_have_more_workers_later_and_may_come_before_and_after_runs(ask: Ask) -> None:
    parent = ask("search=grid", "x=0.1", "kind=a,b").journal().state.trials[0].run
    words = (*ASHA, "search.seed=5", "search.budget.max_trials=3", "search.workers=2", "cluster=local")
    found = ask(*words, start=False, after=parent)
    # Two that come after it come after both of its workers.
    assert parents.find(found.runs, found.spec.id).of_cell(0, 2, None).name == found.spec.id
    assert control.add_workers(found.runs, found.spec.id, 4) == 4
    with pytest.raises(InputError, match="has 4 workers, and cannot have 3"):
        control.resume_with(found.runs, found.spec.id, print, None, None, 3, code_now=False)
    sweep = read_sweep(found.folder)
    assert len(set(sweep.run_ids)) == 4
    assert [cell["after"] for cell in sweep.body["cells"]] == [{"kind": "run", "id": parent}] * 4
    assert worker(found, 3) == 0
    # Those of the first two are theirs.
    assert sorted(found.journal().state.trials) == [2, 3, 4]
    assert {trial.slot for trial in found.journal().state.trials.values()} == {3}


def test_an_inline_search_says_why_it_has_one_worker_only(ask: Ask) -> None:
    found = ask("search=random", *SPACE, "metric=losses", "search.budget.max_trials=9")
    with pytest.raises(InputError, match=r"has cluster=inline: .* cannot have 2 workers"):
        control.resume_with(found.runs, found.spec.id, print, None, None, 2, code_now=False)
    said: list[str] = []
    control.resume_with(found.runs, found.spec.id, said.append, None, None, 1, code_now=False)
    assert "Did you mean losses? It goes on." in said[0]
    assert said[1].endswith("5 trials so far, starting 1 of 1 worker")


def _add_workers(folder: Path, num_workers: int, gate: Event) -> None:
    gate.wait()
    assert control.add_workers(folder.parent.parent, folder.name, num_workers) >= num_workers


def test_of_several_who_add_workers_at_once_none_takes_away_what_another_has_added(ask: Ask) -> None:
    found = ask(*ASHA, "search.budget.max_trials=3", "search.workers=2", "cluster=local", start=False)
    context = multiprocessing.get_context("fork")
    for wanted in range(10, 100, 10):
        gate = context.Event()
        added = [context.Process(target=_add_workers, args=(found.folder, wanted - k, gate)) for k in range(6)]
        for process in added:
            process.start()
        gate.set()
        for process in added:
            process.join()
        assert [process.exitcode for process in added] == [0] * 6
        assert len(set(read_sweep(found.folder).run_ids)) == wanted


def test_who_died_while_adding_workers_holds_up_nobody(ask: Ask) -> None:
    found = ask(*ASHA, "search.budget.max_trials=3", "search.workers=2", "cluster=local", start=False)

    def die() -> None:
        with SweepLog(found.folder).changing():
            os.kill(os.getpid(), signal.SIGKILL)

    process = ForkProcess(target=die)
    process.start()
    process.join()
    assert control.add_workers(found.runs, found.spec.id, 3) == 3
