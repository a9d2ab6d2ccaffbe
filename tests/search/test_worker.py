"""Workers on real folders: what they train, what they survive, and what they write down."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from hpctool.rundir import RunDir
from hpctool.search import control, decide, verify
from hpctool.search.journal import OVER, Journal, State
from hpctool.search.spec import read_spec
from tests.search.conftest import ASHA, SPACE, Ask, Found, start, worker
from tests.search.jobs.toy import loss

#: Whole runs, each with its folder: a dozen take seconds of CPU.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def values(state: State, rung: int) -> dict[int, float]:
    return {trial.number: trial.values[rung] for trial in state.trials.values() if rung in trial.values}


def test_asha_trains_the_best_to_the_end_and_every_decision_comes_out_again(ask: Ask) -> None:
    found = ask(*ASHA, "search.budget.max_trials=12")
    state = found.journal().state
    assert len(state.trials) == 12
    assert state.stopped == "all 12 trials are made"
    assert len(values(state, 0)) == 12
    assert 4 <= len(values(state, 1)) <= 8
    assert 1 <= len(values(state, 2)) <= 3
    for number, value in values(state, 0).items():
        point = state.trials[number].point
        assert value == loss(point["x"], point["kind"], 1)
    paused = [RunDir(found.runs / t.run) for t in state.trials.values() if t.state == "paused"]
    assert {run.story().state for run in paused} == {"cancelled"}
    assert "paused by its search" in paused[0].story().cause
    again = verify.verify(found.folder)
    assert (again.num_proposals, again.different, again.broken) == (12, [], {})
    assert again.num_promotions == sum(len(values(state, rung)) for rung in (1, 2))
    # The best is a run like any other, which went on where it was.
    best = state.best()
    assert best is not None
    run = RunDir(found.runs / best.run)
    record = run.record()
    assert (record["job"], record["sweep"], record["trial"]) == ("toy", found.spec.id, best.number)
    assert (run.result() or {})["state"] == "completed"
    steps = [body["step"] for body in run.story().of_kind("resumed")]
    assert steps == sorted(steps)
    assert len(steps) == 1 or steps[-1] > 0


def test_the_stop_rule_ends_trials_at_their_rung_for_good(ask: Ask) -> None:
    found = ask(*ASHA, "search.rule=stop", "search.sampler=random", "search.budget.max_trials=6")
    counts = Counter(trial.state for trial in found.journal().state.trials.values())
    assert counts.keys() == {"completed", "stopped"}
    assert counts["stopped"] >= 2


@pytest.mark.parametrize(
    ("words", "state", "why"),
    [
        (["fail=ValueError"], "failed", "the first 5 trials all failed: ValueError: x is"),
        (["fail=MemoryError", "search.budget.max_trials=2"], "infeasible", "all 2 trials are made"),
        (["metric='nan'", "search.budget.max_trials=2"], "completed", "all 2 trials are made"),
    ],
)
def test_what_fails_what_does_not_fit_and_what_is_no_number_are_told_apart(
    ask: Ask, words: list[str], state: str, why: str
) -> None:
    seen = ask(
        "search=random", *SPACE, *(words if len(words) > 1 else [*words, "search.budget.max_trials=9"])
    ).journal()
    assert why in seen.state.stopped
    assert {trial.state for trial in seen.state.trials.values()} == {state}


def test_a_metric_that_does_not_come_ends_a_trial_at_its_first_rung(ask: Ask) -> None:
    state = ask(*ASHA, "metric=losses", "search.budget.max_trials=9").journal().state
    assert all(0 < trial.step < 9 or trial.step == 0 for trial in state.trials.values())
    assert "never measured; there is: losses, other. Did you mean losses?" in state.stopped


def test_a_run_that_was_there_already_is_the_answer_and_costs_nothing(ask: Ask) -> None:
    words = ("search=grid", "x=0.1,0.2", "kind=a,b")
    first = ask(*words).journal().state
    assert sum(trial.used_s for trial in first.trials.values()) > 0
    second = ask(*words, "search.seed=1").journal().state
    assert [trial.cause for trial in second.trials.values()] == ["the run was there already"] * 4
    assert values(second, 0) == values(first, 0)
    assert second.used_s == 0


def test_a_search_that_is_asked_for_again_goes_on_and_one_with_a_larger_budget_makes_more(ask: Ask) -> None:
    words = (*ASHA, "search.seed=3")
    first = ask(*words, "search.budget.max_trials=3")
    same = ask(*words, "search.budget.max_trials=3")
    assert same.folder == first.folder
    assert len(same.journal().state.trials) == 3
    more = ask(*words, "search.budget.max_trials=4")
    assert more.folder == first.folder
    assert len(more.journal().state.trials) == 4
    assert control.resume_with(first.runs, first.spec.id, print, 6, None, code_now=False) == 0
    assert len(first.journal().state.trials) == 6
    assert verify.verify(first.folder).different == []


def test_a_damaged_journal_is_used_without_its_broken_entries_which_are_named(ask: Ask) -> None:
    found = ask(*ASHA, "search.budget.max_trials=4")
    entries = found.journal().log
    for number, damage in ((3, b""), (5, entries.path(5).read_bytes()[:-30]), (8, b"x" + entries.path(8).read_bytes())):
        entries.path(number).chmod(0o644)
        entries.path(number).write_bytes(damage)
    with pytest.warns(UserWarning, match="set aside"):
        assert control.resume_with(found.runs, found.spec.id, print, 7, None, code_now=False) == 0
    with pytest.warns(UserWarning, match="set aside"):
        again = verify.verify(found.folder)
    assert sorted(again.broken) == ["0000000003", "0000000005", "0000000008"]
    with pytest.warns(UserWarning, match="set aside"):
        assert len(found.journal().state.trials) == 7


def test_workers_killed_every_50_ms_make_every_trial_once_and_lose_none(
    ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    found = ask(*ASHA, "search.budget.max_trials=150", "search.workers=6", "cluster=local", start=False)
    draw, running, kills = random.Random(0), {slot: start(found, slot) for slot in range(6)}, 0
    deadline = time.monotonic() + 500
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
        for slot, process in list(running.items()):
            if process.exitcode is not None:
                del running[slot]
                if process.exitcode != 0:
                    running[slot] = start(found, slot)
        alive = [process for process in running.values() if process.is_alive()]
        if alive and kills < 60:
            victim = draw.choice(alive)
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            kills += 1
    assert not running
    capfd.readouterr()
    journal = found.journal()
    state = journal.state
    assert kills == 60
    # What a killed worker had left in the middle has come to its end.
    assert {trial.state for trial in state.trials.values()} <= {"paused", *OVER}
    assert sorted(state.trials) == list(range(150))
    bodies = [entry.body for entry in journal.log.entries()]
    assert Counter(body["t"] for body in bodies if body["op"] == "propose") == Counter(range(150))
    # Once by whoever had the trial: one that was taken over on a busy machine, and still spoke, is not heard.
    results = [body for body in bodies if body["op"] in ("rung", "end")]
    told = Counter((body["op"], body["t"], body.get("rung"), body["fence"]) for body in results)
    assert set(told.values()) == {1}
    assert verify.verify(found.folder).different == []


def test_of_two_tasks_for_one_slot_the_older_one_leaves_and_nothing_is_reported_twice(ask: Ask) -> None:
    words = (*ASHA, "step_s=0.02", "search.budget.max_trials=6", "search.workers=2", "cluster=local")
    found = ask(*words, start=False)
    older = start(found, 0)
    while not found.journal().state.trials:
        time.sleep(0.01)
    newer = start(found, 0)
    older.join(300)
    newer.join(300)
    assert (older.exitcode, newer.exitcode) == (1, 0)
    state = found.journal().state
    # Slot 1 never came: its point of the design is left out, and the number is made up for.
    assert len(state.trials) == 6
    assert 1 not in state.trials
    assert {trial.state for trial in state.trials.values()} <= {"paused", "completed"}
    assert verify.verify(found.folder).different == []


def test_the_trial_of_a_worker_that_does_not_come_back_is_taken_over_once(ask: Ask) -> None:
    words = (*ASHA, "step_s=0.05", "search.budget.max_trials=5", "search.workers=3", "cluster=local")
    found = ask(*words, start=False)
    lost = start(found, 2)
    while not found.journal().state.trials:
        time.sleep(0.01)
    assert lost.pid is not None
    os.kill(lost.pid, signal.SIGKILL)
    lost.join()
    # Nobody brings back what ran inline.
    others = [start(found, 0), start(found, 1)]
    for process in others:
        process.join(300)
        assert process.exitcode == 0
    claims = [e.body for e in found.journal().log.entries() if e.body.get("why") == "orphan"]
    assert [body["t"] for body in claims] == [2]
    assert len(found.journal().state.trials) == 5
    assert {trial.state for trial in found.journal().state.trials.values()} <= {"paused", "completed"}


def sharing(ask: Ask) -> tuple[Found, Found, RunDir, ForkProcess, ForkProcess]:
    """Two searches with one run between them, which the first has begun when the second comes to it."""
    words = ["search=grid", "x=0.1", "kind=a,b", "step_s=0.3", "search.workers=1", "cluster=local"]
    words += ["search.try=[{kind: b}]", "search.budget.max_trials=1"]
    one, other = ask(*words, start=False), ask(*words, "search.seed=1", start=False)
    first = start(one, 0)
    while not one.journal().state.trials:
        time.sleep(0.01)
    shared = RunDir(one.runs / one.journal().state.trials[0].run)
    while not shared.story().attempt:
        time.sleep(0.01)
    second = start(other, 0)
    while not other.journal().state.trials:
        time.sleep(0.01)
    assert other.journal().state.trials[0].run == shared.id
    return one, other, shared, first, second


def test_what_two_searches_share_one_of_them_trains_and_the_other_waits_for(ask: Ask) -> None:
    one, other, shared, *processes = sharing(ask)
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    trials = [found.journal().state.trials[0] for found in (one, other)]
    assert [(trial.state, trial.num_deaths) for trial in trials] == [("completed", 0)] * 2
    assert trials[1].cause == "the run was there already"
    assert len(shared.story().of_kind("begun")) == 1


def test_the_run_of_another_search_that_died_is_gone_on_with(ask: Ask) -> None:
    _, other, shared, first, second = sharing(ask)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join(300)
    assert second.exitcode == 0
    assert [body["attempt"] for body in shared.story().of_kind("begun")] == [1, 2]
    assert other.journal().state.trials[0].state == "completed"


def test_a_trial_that_could_not_run_ends_as_failed_although_its_proposer_was_killed_before_it_said_so(ask: Ask) -> None:
    found = ask("search=random", *SPACE, "search.budget.max_trials=2", start=False)
    body = {"t": 0, "params": found.spec.design[0], "run": "?", "slot": 0, "why": "design"}
    found.journal().add("propose", **body, seen=0, to=0, expected_s=0.0, at_s=0.0)
    assert worker(found, 0) == 0
    trials = found.journal().state.trials
    assert [trial.state for trial in trials.values()] == ["failed", "completed"]
    assert "was proposed as run ? and would be toy-" in trials[0].cause
    # Asked for again it ends the same way, and holds up nobody.
    control.retry(found.runs, found.spec.id, print)
    assert found.journal().state.trials[0].state == "failed"


def _propose_once(folder: Path, slot: int, gate: Event) -> None:
    journal = Journal(folder, read_spec(folder))
    gate.wait()
    decision = decide.decide(journal.read(), slot, 0.0)
    body = {"t": decision.trial, "params": decision.point, "run": f"toy-{slot}", "slot": slot, "why": decision.why}
    journal.add("propose", **body, seen=journal.state.last, to=0, expected_s=0.0, at_s=0.0)


def test_two_hundred_workers_that_begin_in_one_moment_have_two_hundred_trials(ask: Ask) -> None:
    words = ("search.budget.max_trials=201", "search.workers=200", "cluster=local")
    found = ask("search=random", *SPACE, *words, start=False)
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    started = [context.Process(target=_propose_once, args=(found.folder, slot, gate)) for slot in range(200)]
    for process in started:
        process.start()
    gate.set()
    for process in started:
        process.join()
    state = found.journal().state
    assert {trial.number: trial.slot for trial in state.trials.values()} == {slot: slot for slot in range(200)}
    assert len(state.points) == 200
    assert found.journal().log.last() == 200
