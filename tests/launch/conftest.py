"""Runs whose ranks are small real programs, and a local queue that is taken down after the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpctool.files import sha256_bytes
from hpctool.launch import local, ranks
from hpctool.launch.result import process_start
from hpctool.rundir import RunDir, create_run
from tests.launch.programs import Rank, until
from tests.launch.toy_slurm import ToySlurm

#: A rank that runs `program.py` of its run folder.
COMMAND = (sys.executable, "-c", "import runpy, sys; runpy.run_path(sys.argv[1] + '/program.py')")

#: What each program may use; the ledger entries are those that the real task writes.
PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from hpctool.launch.result import own_process
from hpctool.rundir import RunDir, now

run, rank, size = RunDir(Path(sys.argv[1])), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
story = run.story()
attempt = story.attempt + (rank == 0)

def note(text):
    with open(run.path / "notes", "a") as file:
        file.write(f"{rank} {time.monotonic()} {text}\\n")

def begin():
    if rank == 0:
        run.ledger.append({"kind": "begun", "attempt": attempt, "where": "local", "time": now(), **own_process()})

def checkpoint(step):
    run.ledger.append({"kind": "checkpoint", "attempt": attempt, "step": step, "path": "", "digest": ""})

def end(state, cause="", code=0):
    if rank == 0:
        body = {"kind": "ended", "attempt": attempt, "state": state, "cause": cause, "step": run.story().step}
        run.ledger.append({**body, "exit_code": code, "time": now()})
    sys.exit(code)

def on(number, action):
    signal.signal(number, lambda *_: action())
"""

MakeRun = Callable[..., RunDir]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make a run folder below tmp_path/runs whose ranks run the given program."""

    def make(program: str, name: str = "toy") -> RunDir:
        code = {"commit": "", "dirty": False, "snapshot": "none", "patch_sha256": ""}
        record = {"name": name, "identity": sha256_bytes(name.encode()), "job": "toy", "code": code}
        text = PREAMBLE + textwrap.dedent(program)
        return create_run(tmp_path / "runs", {**record, "cwd": str(tmp_path)}, {"program.py": text})

    return make


def notes(run: RunDir) -> list[tuple[int, float, str]]:
    """What the ranks noted: rank, monotonic time in seconds, text."""
    try:
        lines = (run.path / "notes").read_text().splitlines()
    except FileNotFoundError:
        return []
    parts = [line.split(" ", 2) for line in lines]
    return [(int(rank), float(when), text) for rank, when, text in parts]


class Bench:
    """A local queue under test."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.queue = local.Queue(runs)

    def ticket(self, run: RunDir | None = None, **values: Any) -> local.Ticket:
        usual: dict[str, Any] = {"run": run and run.id, "sweep": None, "cell": None, "num_ranks": 1, "time_s": None}
        usual |= {"signal_delay_s": 1.0, "kill_wait_s": 2.0, "max_parallel": 2, "max_failures": 3}
        return local.Ticket(**{**usual, **values})

    def enqueue(self, *tickets: local.Ticket) -> None:
        local.enqueue(self.runs, list(tickets), command=COMMAND)

    def wait(self, *runs: RunDir, timeout_s: float = 60.0) -> None:
        left = local.wait(self.runs, [run.id for run in runs], timeout_s=timeout_s)
        assert not left, self.queue.log.read_text()

    def log(self) -> str:
        return self.queue.log.read_text()

    def supervisor(self) -> int:
        """The pid of the supervisor that lives, or 0."""
        known = json.loads(self.queue.state_json.read_text())["supervisor"] if self.queue.state_json.exists() else None
        return known["pid"] if known and process_start(known["pid"]) == known["pid_start"] else 0

    def kill_supervisor(self, number: signal.Signals = signal.SIGKILL) -> None:
        pid = until(self.supervisor)
        os.kill(pid, number)
        until(lambda: not process_start(pid))

    def take_down(self) -> list[int]:
        """End the supervisor; returns what it had left running."""
        if self.supervisor():
            self.kill_supervisor(signal.SIGTERM)
        return ranks.end_orphans(self.queue.mark()) if self.queue.mark() else []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A queue for tmp_path/runs. When the test is over, nothing that it started may be left."""
    bench = Bench(tmp_path / "runs")
    yield bench
    left = bench.take_down()
    assert not left, f"processes {left} outlived their supervisor:\n{bench.log()}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project to stand in."""
    monkeypatch.chdir(tmp_path)
    # As the console script has it.
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("HPCTOOL_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def rank() -> Iterator[Rank]:
    """Start the one rank of a run as a local queue or Slurm would, in a process group of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(rundir: RunDir, **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hpctool.launch.task", str(rundir.path)]
        started.append(subprocess.Popen(command, env={**os.environ, **environ}, process_group=0))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def toy_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToySlurm]:
    """A Slurm of stand-in programs that keeps jobs in its queue and runs none."""
    slurm = ToySlurm(tmp_path / "slurm", monkeypatch)
    yield slurm
    slurm.forget()
