from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpctool.launch import ranks
from hpctool.launch.ranks import Attempt, Limits, Outcome
from hpctool.launch.result import process_start
from hpctool.rundir import RunDir
from tests.launch.conftest import COMMAND, MakeRun, notes
from tests.launch.programs import until

FOREVER = Limits(time_s=None, signal_delay_s=1.0, kill_wait_s=1.0)


class Starter:
    """Starts attempts and remembers them."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def __call__(self, run: RunDir, num_ranks: int = 1, limits: Limits = FOREVER) -> Attempt:
        environ = {**os.environ, ranks.MARK: "test"}
        environ.pop("OMP_NUM_THREADS", None)
        self.attempts.append(Attempt(run, num_ranks, limits, environ, COMMAND))
        return self.attempts[-1]


@pytest.fixture
def start() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    for attempt in starter.attempts:
        attempt.kill()


def finish(attempt: Attempt, timeout_s: float = 20.0) -> Outcome:
    outcome = until(attempt.poll, timeout_s)
    assert isinstance(outcome, Outcome)
    return outcome


def all_noted(run: RunDir, count: int, text: str = "ready") -> None:
    until(lambda: sum(t == text for _, _, t in notes(run)) >= count)


@pytest.mark.slow
def test_each_rank_knows_its_place_and_all_meet_at_a_point_of_this_attempt(make_run: MakeRun, start: Starter) -> None:
    keys = "['WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'OMP_NUM_THREADS', 'HPCTOOL_RENDEZVOUS']"
    run = make_run(f"note(' '.join(os.environ[key] for key in {keys}))")
    meetings = set()
    for _ in range(2):
        (run.path / "notes").unlink(missing_ok=True)
        assert finish(start(run, 2)) == Outcome((0, 0))
        said = {rank: text.split() for rank, _, text in notes(run)}
        assert {rank: text[:4] for rank, text in said.items()} == {0: ["2", "0", "2", "1"], 1: ["2", "1", "2", "1"]}
        assert said[0][4] == said[1][4]
        meetings.add(said[0][4])
    assert len(meetings) == 2


@pytest.mark.slow
def test_what_a_rank_says_before_it_has_a_log_is_kept_and_its_input_is_empty(make_run: MakeRun, start: Starter) -> None:
    run = make_run("print('read', repr(sys.stdin.read())); print('and', rank, file=sys.stderr)")
    finish(start(run, 2))
    assert ranks.starting_log(run, 1).read_text().splitlines() == ["read ''", "and 1"]


@pytest.mark.slow
def test_when_a_rank_is_killed_the_others_are_told_and_it_is_named(make_run: MakeRun, start: Starter) -> None:
    run = make_run("on(signal.SIGTERM, lambda: sys.exit(75)); note('ready'); time.sleep(60)")
    attempt = start(run, 3)
    all_noted(run, 3)
    os.kill(attempt.pids[1], signal.SIGKILL)
    began = time.monotonic()
    outcome = finish(attempt)
    assert outcome == Outcome((75, -signal.SIGKILL, 75), first_rank=1)
    assert time.monotonic() - began == pytest.approx(ranks.GRACE_S, abs=1.0)


@pytest.mark.slow
def test_a_killed_rank_comes_before_those_that_fell_with_it(make_run: MakeRun, start: Starter) -> None:
    run = make_run("sys.exit(1) if rank == 0 else os.kill(os.getpid(), signal.SIGKILL)")
    attempt = start(run, 2)
    time.sleep(1.0)  # nobody looks before both have ended
    assert finish(attempt).first_rank == 1


@pytest.mark.slow
def test_a_rank_that_does_not_listen_is_killed_in_the_end(make_run: MakeRun, start: Starter) -> None:
    run = make_run("signal.signal(signal.SIGTERM, signal.SIG_IGN); note('ready'); time.sleep(60)")
    attempt = start(run, 2)
    all_noted(run, 2)
    attempt.stop("cancelled")
    began = time.monotonic()
    assert finish(attempt) == Outcome((-9, -9), first_rank=0, told="cancelled")
    assert 0.9 < time.monotonic() - began < 3.0


@pytest.mark.slow
def test_the_time_limit_comes_with_a_warning(make_run: MakeRun, start: Starter) -> None:
    run = make_run("""
        on(signal.SIGUSR2, lambda: note("USR2"))
        on(signal.SIGTERM, lambda: (note("TERM"), sys.exit(75)))
        while True:
            time.sleep(0.05)
        """)
    began = time.monotonic()
    outcome = finish(start(run, 1, Limits(time_s=2.0, signal_delay_s=0.7, kill_wait_s=2.0)))
    assert outcome == Outcome((75,), first_rank=0, told="timeout")
    told = {text: when - began for _, when, text in notes(run)}
    assert told == {"USR2": pytest.approx(1.3, abs=0.3), "TERM": pytest.approx(2.0, abs=0.3)}


@pytest.mark.slow
def test_what_a_rank_leaves_behind_ends_with_it(make_run: MakeRun, start: Starter) -> None:
    run = make_run("note(str(subprocess.Popen(['sleep', '60']).pid)); os._exit(0)")
    assert finish(start(run)) == Outcome((0,))
    left = int(notes(run)[0][2])
    until(lambda: not process_start(left), timeout_s=2.0)


@pytest.mark.slow
def test_ended_ranks_are_no_zombies(make_run: MakeRun, start: Starter) -> None:
    attempt = start(make_run("pass"), 2)
    finish(attempt)
    assert not any(Path(f"/proc/{pid}").exists() for pid in attempt.pids)


def test_ending_what_has_ended_already_is_no_error(make_run: MakeRun, start: Starter) -> None:
    attempt = start(make_run("pass"))
    os.waitpid(attempt.pid, 0)
    attempt.kill()


def test_a_program_that_is_not_there_is_said_and_leaves_nothing(make_run: MakeRun) -> None:
    run = make_run("pass")
    with pytest.raises(FileNotFoundError):
        Attempt(run, 2, FOREVER, os.environ, ["/no/such/python"])


@pytest.mark.slow
def test_orphans_are_found_by_their_mark_alone_and_with_their_children(tmp_path: Path) -> None:
    mark = os.urandom(8).hex()
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True)"
    command = [sys.executable, "-c", code + "; time.sleep(60)"]
    marked = subprocess.Popen(command, env={**os.environ, ranks.MARK: mark}, stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, ranks.MARK: "another"})
    with marked, other:
        assert marked.stdout
        child = int(marked.stdout.readline())
        assert ranks.end_orphans(mark) == sorted([marked.pid, child])
        assert marked.wait() == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
