"""Starts the ranks of tests: this process imports torch once and forks every rank, so an attempt costs what it does.

One line of JSON on stdin is one attempt: {"run": folder, "where": "local", "num_ranks": 3, "path": [...], "environ":
{...}}; the answer, on stdout, is the list of the ranks' exit codes (negative for a signal) once all have ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - what the first optimizer would import

import hpctool.train.loop  # noqa: F401
from hpctool.launch import moments, signals, task
from hpctool.place import place_from_environment
from hpctool.rendezvous import RENDEZVOUS
from hpctool.rundir import RunDir


def start(order: dict[str, Any], rank: int, number: int) -> int:
    """Fork one rank, which runs the real task; its process id."""
    pid = os.fork()
    if pid:
        return pid
    run, size = RunDir(Path(order["run"])), str(order["num_ranks"])
    output = os.open(run.path / f"output-{number}-{rank}", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update({RENDEZVOUS: str(run.path / f"meet-{number}.json"), **order["environ"]})
    sys.path[:0] = order["path"]
    if where := order["environ"].get("KILL"):
        kill_at(*map(int, where.split()))
    code = 70
    try:
        signals.install()
        code = task.run_attempt(run, order["where"], place_from_environment())
    finally:
        os._exit(code)


def kill_at(rank: int, last_step: int) -> None:
    """Let `kill -9` come when rank `rank` begins the step behind `last_step`."""

    def reached(moment: moments.Moment, step: int = 0, attempt: int = 0) -> bool:
        if (moment, step) == ("step", last_step) and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    moments.reached = reached


for number, line in enumerate(sys.stdin):
    order = json.loads(line)
    pids = [start(order, rank, number) for rank in range(order["num_ranks"])]
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    print(json.dumps([os.waitstatus_to_exitcode(status) for status in statuses]), flush=True)
