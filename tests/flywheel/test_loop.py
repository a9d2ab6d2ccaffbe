"""The whole loop, once left alone and once with flywheel and server killed at ten random moments: the same table."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpctool.data.authors import label_authors
from hpctool.data.version import open_version
from hpctool.launch import local
from hpctool.launch.result import is_alive
from hpctool.rundir import RunDir, find_run, list_run_ids
from hpctool.serve.journal import open_journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: A small loop: one short training before and after, no rehearsal of a kill.
LOOP = [
    "flywheel",
    "experiment=digits",
    "flywheel.rehearsal.kill=false",
    "flywheel.rehearsal.worn_copies=1",
    "flywheel.sweep=['model=cnn','optim.lr=3e-3']",
    "flywheel.train=['loop.max_epochs=6']",
]
#: In which stages somebody dies, and who: ten kills, each at a random moment of its stage.
KILLS = [
    ("prepare", "loop"),
    ("sweep", "loop"),
    ("export", "loop"),
    ("serve", "server"),
    ("serve", "loop"),
    ("monitor", "server"),
    ("review", "loop"),
    ("retrain", "loop"),
    ("promote", "server"),
    ("promote", "loop"),
]


def start(root: Path, log: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"HPCTOOL_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hpctool.cli.main", *LOOP]
    with open(log, "ab") as file:
        return subprocess.Popen(command, cwd=root, env=env, stdout=file, stderr=file, start_new_session=True)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_server(runs: Path) -> bool:
    """End the server of the loop as a dying node would; False where none runs."""
    for run_id in list_run_ids(runs):
        if run_id.startswith("serve-"):
            begun = RunDir(runs / run_id).story().of_kind("begun")
            if begun and is_alive(begun[-1]):
                os.kill(int(begun[-1]["pid"]), signal.SIGKILL)
                return True
    return False


def wait_for_stage(loop: subprocess.Popen[bytes], log: Path, stage: str) -> None:
    """Until the newest start of the loop has come to a stage."""
    while True:
        told = log.read_text().rpartition("1/13 prepare")[2]
        if stage == "prepare" or f"/13 {stage} " in told:
            return
        assert loop.poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)


def table(root: Path) -> dict[str, Any]:
    """What the loop came to, without ids and times."""
    result = find_run(root / "runs", "flywheel-digits").result()
    assert result is not None
    journal = open_journal(root / "journals", "digits")
    requests = {source: {*journal.read(source=source).request} for source in ("clean", "worn")}
    return {
        "metrics": result["metrics"],
        "requests": requests,
        "authors": label_authors(open_version(root / "datasets", "digits@v2")),
        "versions": sorted(path.name for path in (root / "models" / "digits").glob("0*")),
    }


@pytest.fixture
def roots(tmp_path: Path) -> Any:
    folders = [tmp_path / "straight", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    yield folders
    for folder in folders:
        for row in local.status(folder / "runs"):
            local.cancel(folder / "runs", row["run"] or row["name"])
        local.wait(folder / "runs", [row["name"] for row in local.status(folder / "runs")], timeout_s=30)


def test_a_loop_that_is_killed_ten_times_ends_with_the_same_table(roots: list[Path], tmp_path: Path) -> None:
    straight, killed = roots
    log = tmp_path / "straight.log"
    assert start(straight, log).wait() == 0, log.read_text()[-3000:]

    chance, log = random.Random(7), tmp_path / "killed.log"
    loop = start(killed, log)
    for stage, victim in KILLS:
        wait_for_stage(loop, log, stage)
        time.sleep(chance.uniform(0.0, 1.5))
        if victim == "loop":
            assert loop.poll() is None, log.read_text()[-3000:]
            kill_tree(loop)
            loop = start(killed, log)
        else:
            # Between two lives it cannot be killed; it comes back.
            while not kill_server(killed / "runs"):
                assert loop.poll() is None, log.read_text()[-3000:]
                time.sleep(0.02)
    assert loop.wait() == 0, log.read_text()[-3000:]

    assert table(killed) == table(straight)
    said = json.dumps(table(straight)["authors"])
    assert re.search(r'"oracle": \d+', said)


def test_a_second_start_finds_everything_and_says_so(roots: list[Path], tmp_path: Path) -> None:
    root, _ = roots
    log = tmp_path / "first.log"
    assert start(root, log).wait() == 0, log.read_text()[-3000:]
    before = {run_id for run_id in list_run_ids(root / "runs") if not run_id.startswith("serve-")}
    again = tmp_path / "again.log"
    assert start(root, again).wait() == 0, again.read_text()[-3000:]
    assert {run_id for run_id in list_run_ids(root / "runs") if not run_id.startswith("serve-")} == before
    assert again.read_text().count("is completed already") >= 8
