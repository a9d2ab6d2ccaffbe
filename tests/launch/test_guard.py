"""The guard acts on a stop where the job itself cannot: real processes, real signals, a stand-in scontrol."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Spawn

#: A job whose main thread hears of no signal for a long time, with a guard beside it.
JOB = """
import ctypes, os, sys
from hpctool.launch import signals
from hpctool.launch.guard import Guard
signals.install()
def leave(cause):
    print("left", cause, flush=True)
    os._exit(75)
def last_moment(stop):
    print("requeued", stop.cause, flush=True)
    os._exit(76)
guard = Guard(leave if "leave" in sys.argv else None, last_moment if "moment" in sys.argv else None)
guard.start()
if "done" in sys.argv:
    guard.dismiss()
print("ready", flush=True)
ctypes.PyDLL(None).sleep(2) if "done" in sys.argv else ctypes.CDLL(None).sleep(30)
ctypes.CDLL(None).sleep(30)
"""


def scontrol(folder: Path, deadline_in_s: float) -> dict[str, str]:
    """An environment in which Slurm says that the job is preempted, with so much grace time left."""
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H:%M:%S")
    job = f"JobId=7 JobState=RUNNING Restarts=0 Partition=batch PreemptTime={now}"
    answers = {"job": job, "partition": f"GraceTime={int(deadline_in_s)}", "config": "KillWait = 0 sec"}
    cases = "".join(f"*' {kind}'*) echo '{answer}';;\n" for kind, answer in answers.items())
    (folder / "scontrol").write_text(f'#!/bin/sh\ncase " $*" in\n{cases}esac\n')
    (folder / "scontrol").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


def told(process: subprocess.Popen[str]) -> float:
    """Wait for the job, tell it to stop, and give the time."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    return time.monotonic()


@pytest.mark.slow
def test_a_job_without_boundaries_is_ended_though_its_main_thread_hears_nothing(spawn: Spawn) -> None:
    process = spawn(JOB, "leave")
    told(process)
    assert process.communicate(timeout=20)[0] == "left preempted\n"
    assert process.returncode == 75


@pytest.mark.slow
def test_a_job_that_could_not_save_is_requeued_shortly_before_the_kill(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn(JOB, "moment", env=scontrol(tmp_path, deadline_in_s=5))
    began_s = told(process)
    assert process.communicate(timeout=20)[0] == "requeued preempted\n"
    assert 1.5 < time.monotonic() - began_s < 5.0


@pytest.mark.slow
def test_a_guard_that_is_dismissed_does_nothing(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn(JOB, "leave", "moment", "done", env=scontrol(tmp_path, deadline_in_s=2))
    told(process)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=4)


def test_signals_that_were_held_back_while_python_imported_are_heard(tmp_path: Path) -> None:
    from hpctool.launch.slurm.body import HOLD

    code = """
import os, signal
os.kill(os.getpid(), signal.SIGUSR2)
from hpctool.launch import signals
signals.install()
print(signals.stop_cause())
"""
    done = subprocess.run(
        [sys.executable, "-ISc", HOLD, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "timeout\n"), done.stderr
