"""What tests of somebody's own program share: scripts, runs of them, and what these leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpctool import config
from hpctool.launch import snapshot
from hpctool.launch.plan import Request, make_plan, record
from hpctool.launch.result import process_start
from hpctool.rundir import RunDir, create_run

Rank = Callable[..., "subprocess.Popen[bytes]"]

#: `note("name")` leaves this process's pid where the test finds it; `wait()` never returns.
NOTE = """\
import json, os, signal, subprocess, sys, time

def note(name, text=None):
    path = f"{os.environ['HPCTOOL_RUN']}/artifacts/{name}"
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()) if text is None else str(text))
    os.rename(path + ".new", path)

def wait():
    while True:
        time.sleep(1000)
"""


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)
    return path


def submitted(*overrides: str) -> RunDir:
    """A run as its submission leaves it, before anybody starts it."""
    plan = make_plan(Request("run", ["cluster=local", "cluster.kill_wait_s=2", *overrides]), multirun=False)
    cell = plan.cells[0]
    code = snapshot.take(plan.runs, Path.cwd(), [Path(cell.cfg.script)] if cell.cfg.script else [])
    return create_run(plan.runs, record(plan, cell, code.record()), {"config.yaml": config.to_yaml(cell.cfg)})


def of_script(here: Path, text: str, *overrides: str) -> RunDir:
    """A run of a Python script that begins with NOTE."""
    (here / "own.py").write_text(NOTE + textwrap.dedent(text))
    return submitted("script=own.py", *overrides)


def hpctool(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpctool.cli.main", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something to become true and give it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def noted(rundir: RunDir, *names: str) -> Any:
    """What the program has noted under these names, as soon as it is there."""
    paths = [rundir.path / "artifacts" / name for name in names]
    until(lambda: all(path.exists() for path in paths))
    found = [json.loads(path.read_text()) for path in paths]
    return found[0] if len(found) == 1 else found


def log(rundir: RunDir, attempt: int = 1) -> str:
    return rundir.log(0, attempt).read_text()


def ended(rundir: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = rundir.story().of_kind("ended")[-1]
    return found


def are_gone(*pids: int) -> bool:
    return not any(process_start(pid) for pid in pids)
