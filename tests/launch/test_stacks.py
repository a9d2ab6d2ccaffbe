"""Ranks write down which process they are, and their stacks when they are asked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool.launch import signals
from hpctool.launch.stacks import RankProcess, Stacks, ask_here, rank_processes, read
from hpctool.rundir import RunDir
from tests.track.samples import Sample

Spawn = Callable[..., "subprocess.Popen[str]"]

RANK = """
import sys, time, os, signal
from pathlib import Path
from hpctool.launch import signals, stacks
from hpctool.rundir import RunDir

def dreaming():
    print("ready", flush=True)
    exec(sys.argv[3])

signals.install()
rundir = RunDir(Path(sys.argv[1]), 1)
rundir.log(0).parent.mkdir(parents=True, exist_ok=True)
with stacks.answering(rundir, int(sys.argv[2])):
    dreaming()
"""


def start(spawn: Spawn, run: RunDir, rank: int, code: str = "time.sleep(60)") -> subprocess.Popen[str]:
    process = spawn(RANK, run.path, rank, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ask(ranks: list[RankProcess], patience_s: float = 5.0) -> list[Stacks]:
    return [read(one, reply) for one, reply in zip(ranks, ask_here(ranks, patience_s), strict=True)]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return Sample(tmp_path / "runs").begin().rundir


@pytest.mark.slow
def test_a_rank_tells_where_it_is_and_runs_on(run: RunDir, spawn: Spawn) -> None:
    process = start(spawn, run, 3)
    (one,) = rank_processes(run, 1)
    assert (one.rank, one.pid, one.is_here) == (3, process.pid, True)
    for _ in range(2):
        (told,) = ask([one])
        assert "in dreaming" in told.text
        assert told.text.count("most recent call first") == 1, "what was said before is not said again"
    assert process.poll() is None


@pytest.mark.slow
def test_a_rank_that_hangs_in_c_code_answers_all_the_same(run: RunDir, spawn: Spawn) -> None:
    start(spawn, run, 0, "import re; re.match('(a+)+$', 'a' * 64 + 'b')")
    (told,) = ask(rank_processes(run, 1))
    assert "in dreaming" in told.text


@pytest.mark.slow
def test_all_threads_are_told(run: RunDir, spawn: Spawn) -> None:
    start(spawn, run, 0, "import threading; threading.Thread(target=lambda: time.sleep(60)).start(); time.sleep(60)")
    time.sleep(0.2)
    (told,) = ask(rank_processes(run, 1))
    assert told.text.count("most recent call first") == 2


@pytest.mark.slow
def test_a_dead_rank_and_one_that_is_stopped_are_said(run: RunDir, spawn: Spawn) -> None:
    dead, stopped = start(spawn, run, 0), start(spawn, run, 1)
    dead.kill()
    dead.wait()
    os.kill(stopped.pid, signal.SIGSTOP)
    first, second = ask(rank_processes(run, 1), patience_s=0.5)
    assert first.problem == f"its process {dead.pid} on {os.uname().nodename} is gone"
    assert "it is stopped" in second.problem
    assert (first.text, second.text) == ("", "")


@pytest.mark.slow
def test_a_number_that_now_belongs_to_somebody_else_is_never_signalled(run: RunDir, spawn: Spawn) -> None:
    rank = start(spawn, run, 0)
    innocent = spawn("import time; print('here', flush=True); time.sleep(60)")
    assert innocent.stdout is not None
    innocent.stdout.readline()
    path = run.stacks(0, 1)
    path.write_text(path.read_text().replace(str(rank.pid), str(innocent.pid), 1))
    (told,) = ask(rank_processes(run, 1), patience_s=0.5)
    assert "is gone" in told.problem
    assert innocent.poll() is None


@pytest.mark.slow
def test_data_workers_ignore_the_question(run: RunDir, spawn: Spawn) -> None:
    code = "pid = os.fork() or (time.sleep(60), os._exit(0)); print(pid, flush=True); time.sleep(60)"
    process = start(spawn, run, 0, code)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    time.sleep(0.2)
    os.kill(worker, signals.STACKS)
    (told,) = ask(rank_processes(run, 1))
    assert told.text.count("most recent call first") == 1
    os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
def test_programs_that_a_rank_starts_ignore_it_too_before_and_after_the_work(run: RunDir, spawn: Spawn) -> None:
    code = "from hpctool.launch import signals; import time; signals.install(); print(1, flush=True); time.sleep(60)"
    process = spawn(code)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signals.STACKS)
    time.sleep(0.2)
    assert process.poll() is None


def test_a_broken_file_is_no_rank(run: RunDir) -> None:
    path = run.stacks(0, 1)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    path.with_name("notes.stacks").write_text("{}")
    assert rank_processes(run, 1) == []
