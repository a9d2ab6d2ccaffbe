"""What people are told of runs on the real cluster: why they wait, where they hang, how they ended, what they cost."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hpctool.rundir import RunDir
from tests.slurm.survive import Lab

pytestmark = pytest.mark.timeout(300)

#: Longer than any test here looks at it.
ENDLESS = ("loop.max_steps=4000", "loop.checkpoint_every_steps=8", "loop.eval_every_steps=4000")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    """Start a command of the user's in the project folder; what still runs is ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*command: str) -> subprocess.Popen[str]:
        started.append(lab.cluster.popen(*command, cwd=lab.folder))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of squeue is good for a second, so that tests need not wait for the next one."""
    monkeypatch.setenv("HPCTOOL_SQUEUE_EVERY_S", "1")


class Terminal:
    """A command of the user's in the project folder under a terminal of its own, into which a test types."""

    def __init__(self, lab: Lab, *command: str) -> None:
        self.screen, inside = pty.openpty()
        # Its terminal is its own: Ctrl-C reaches what runs there and not us.
        entered = ["setsid", "--ctty", "--wait", *lab.cluster.entered(command, lab.folder)]
        env = {**lab.cluster.environment(), "TERM": "xterm"}
        self.process = subprocess.Popen(entered, env=env, stdin=inside, stdout=inside, stderr=inside)
        os.close(inside)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, words: str, timeout_s: float = 60) -> None:
        """Wait until the screen shows this; what was shown before counts no more."""
        deadline_s = time.monotonic() + timeout_s
        while words not in self.shown:
            assert time.monotonic() < deadline_s, f"{words!r} is not in {self.shown!r}"
            if select.select([self.screen], [], [], 0.5)[0]:
                self.shown += os.read(self.screen, 4096).decode(errors="replace")
        self.shown = self.shown.partition(words)[2]

    def close(self) -> int:
        """Wait for the command's end and give its exit code; what has not ended by itself is killed."""
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.kill()
            os.close(self.screen)


def sit_beside(lab: Lab, run: RunDir) -> None:
    """What is done in a shell beside a rank is done where the rank is, and leaves the rank alone."""
    terminal = Terminal(lab, "hpctool", "runs", "shell", run.id, "--rank", "3")
    terminal.until("exit leaves it alone.")
    terminal.type("echo $(hostname) $SLURM_JOB_ID ${RANK-none} $PWD\n")
    terminal.until(f"n2 {run.story().slurm_job_id} none {lab.folder}")
    # The child says it: bash has given it the terminal then.
    terminal.type("sh -c \"echo be''gun; exec sleep 600\"\n")
    terminal.until("begun\r\n")
    terminal.type("\x03")
    terminal.type("echo code $?\n")
    terminal.until("code 130")
    terminal.type("yes | head -n 1; echo pipe ${PIPESTATUS[0]}\n")
    terminal.until("pipe 141")
    terminal.type("exit\n")
    assert terminal.close() == 0
    passes = lab.folder / "passes" / f"{run.id}.1.3"
    was, deadline_s = int(passes.read_text() or 0), time.monotonic() + 60
    while int(passes.read_text() or 0) <= was:
        assert time.monotonic() < deadline_s, "the rank takes no more steps"
        time.sleep(0.1)


def told(lab: Lab, run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.hpctool("runs", "show", run.id, "--json").stdout)
    return found


def until_told(lab: Lab, run: RunDir, what: Callable[[dict[str, Any]], Any], timeout_s: float = 60) -> dict[str, Any]:
    """Ask until the answer is so."""
    deadline_s = time.monotonic() + timeout_s
    while not what(found := told(lab, run)):
        assert time.monotonic() < deadline_s, f"{run.id} is said to be {found['state']} ({found['cause']})"
        time.sleep(0.5)
    return found


def is_so(state: str, *words: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found["state"] == state and all(word in found["cause"] for word in words)


def test_a_training_is_told_of_from_the_queue_to_its_end(lab: Lab, start: Start) -> None:
    run = lab.train("whole", *ENDLESS, "+cluster.extra={hold: null}")
    found = until_told(lab, run, is_so("queued", "held by its user"))
    assert found["queue"]["reason"] == "JobHeldUser"
    lab.cluster.as_root("scontrol", "release", found["slurm_job_id"])
    lab.until_training(run)
    follower = start("hpctool", "runs", "logs", "-f", run.id, "--rank", "3")
    assert until_told(lab, run, is_so("running"))["queue"]["nodes"] == "n[1-2]"

    # Where its ranks are, on both nodes, from the login host.
    stacks = json.loads(lab.hpctool("runs", "stacks", run.id, "--json").stdout)
    assert [one["rank"] for one in stacks] == [0, 1, 2, 3]
    assert all("labtask.py" in one["text"] or "loop.py" in one["text"] for one in stacks), stacks
    beside = lab.hpctool("runs", "shell", run.id, "--rank", "3", "sh", "-c", "hostname; pwd; env").stdout.splitlines()
    assert beside[:2] == ["n2", str(lab.folder)]
    assert f"SLURM_JOB_ID={found['slurm_job_id']}" in beside
    assert not [line for line in beside if line.startswith(("SLURM_PROCID=", "RANK="))]

    sit_beside(lab, run)

    # Slurm stops it for a while: it is alive, and says so.
    lab.cluster.as_root("scontrol", "suspend", found["slurm_job_id"])
    until_told(lab, run, is_so("running", "suspended by Slurm"))
    stopped = lab.hpctool("runs", "stacks", run.id, check=False)
    assert stopped.returncode == 1
    assert "is suspended by Slurm" in stopped.stderr
    lab.cluster.as_root("scontrol", "resume", found["slurm_job_id"])
    until_told(lab, run, lambda now: now["state"] == "running" and not now["cause"])

    # An administrator requeues it; what it had done since its newest checkpoint is done again.
    lab.cluster.as_root("scontrol", "requeue", found["slurm_job_id"])
    until_told(lab, run, is_so("requeued", "Slurm holds a requeued job back for two minutes"))
    lab.until(run, lambda story: story.attempt == 2, hurry=True)
    lab.until_training(run, attempt=2)
    now = until_told(lab, run, is_so("running"))
    assert now["attempts"] == 2
    assert 0 < now["hours"]["cpu_hours"] < 1
    assert 0 <= now["hours"]["lost_share"] < 1

    # Its user cancels it behind our back.
    lab.cluster.run("scancel", found["slurm_job_id"])
    assert "cancelled" in until_told(lab, run, is_so("cancelled"))["cause"]
    _, said = follower.communicate(timeout=60)
    assert f"Attempt 2 of {run.id}:" in said
    assert f"{run.id} is cancelled" in said


@pytest.mark.parametrize("accounting", ["on", "off"])
def test_a_job_that_dies_before_our_python_begins_says_how_and_shows_its_words(lab: Lab, accounting: str) -> None:
    if accounting == "off":
        lab.cluster.limits(accounting="off")
    run = lab.train(f"early-{accounting}", "cluster.setup=[echo no such module, exit 3]")
    found = until_told(lab, run, is_so("failed"))
    # Accounting may not know yet what squeue says already.
    assert found["cause"] in {f"it ended with {how} before it could say why" for how in ("exit code 3", "an error")}
    answer = lab.hpctool("runs", "logs", "-f", run.id)
    assert "no such module" in answer.stdout
    assert f"{run.id} is failed" in answer.stderr


def test_a_job_that_is_killed_with_its_script_is_looked_up(lab: Lab) -> None:
    run = lab.train("silent", *ENDLESS, "resources.tasks_per_node=1")
    lab.until_training(run)
    job = run.story().slurm_job_id
    # Neither the ranks nor the script can say anything: all get SIGKILL at once.
    lab.cluster.run("scancel", "--full", "--signal=KILL", job)
    lab.cluster.wait_state(job, {"FAILED", "CANCELLED"})
    found = until_told(lab, run, lambda now: now["state"] in ("failed", "cancelled"))
    assert found["cause"]
    assert run.story().state in ("running", found["state"])


def test_a_sweep_is_told_of_as_a_whole_and_slurm_is_asked_once_by_all_watchers(lab: Lab, start: Start) -> None:
    counted = lab.folder / "bin"
    counted.mkdir()
    real = shutil.which("squeue")
    (counted / "squeue").write_text(f'#!/bin/sh\necho x >> {lab.folder}/squeues\nexec {real} "$@"\n')
    (counted / "squeue").chmod(0o755)
    shutil.chown(counted, lab.cluster.user)
    (lab.folder / "squeues").touch(0o666)
    (lab.folder / "squeues").chmod(0o666)
    seeds = "seed=1,2,3,4,5,6"
    cells = lab.sweep("told", seeds, *ENDLESS, "cluster.max_parallel=2")
    sweep = json.loads(lab.hpctool("sweep", "list", "--json").stdout)[0]["id"]
    lab.until_training(cells[0])
    lab.until_training(cells[1])

    path = f"PATH={counted}:{lab.cluster.environment()['PATH']}"
    every = "HPCTOOL_SQUEUE_EVERY_S=4"
    began_s = time.monotonic()
    watchers = [start("env", path, every, "hpctool", "runs", "watch", sweep) for _ in range(5)]
    time.sleep(14)
    status = json.loads(lab.hpctool("sweep", "status", sweep, "--json").stdout)
    assert status["states"] == {"running": 2, "queued": 4}
    (group,) = [group for group in status["causes"] if group["state"] == "queued"]
    assert group["cells"] == [2, 3, 4, 5]
    assert group["cause"] == "cluster.max_parallel others of its array run"
    assert status["hours"]["cpu_hours"] > 0
    asked = (lab.folder / "squeues").read_text().count("x")
    assert not [watcher.communicate() for watcher in watchers if watcher.poll() is not None]
    assert 1 <= asked <= 1 + (time.monotonic() - began_s) / 4, "five watchers ask no oftener than one"

    lab.hpctool("sweep", "cancel", sweep)
    for watcher in watchers:
        _, said = watcher.communicate(timeout=90)
        assert watcher.returncode == 1, said
        assert f"{cells[0].id}: cancelled" in said
    status = json.loads(lab.hpctool("sweep", "status", sweep, "--json").stdout)
    assert status["states"] == {"cancelled": 6}


def test_while_the_controller_is_down_folders_answer_with_one_sentence(lab: Lab) -> None:
    run = lab.train("alone", *ENDLESS, "resources.nodes=1", "resources.tasks_per_node=1")
    lab.until_training(run)
    before = told(lab, run)
    assert before["state"] == "running"
    time.sleep(2)
    lab.cluster.stop_controller()
    try:
        for words in (["runs", "list"], ["runs", "show", run.id], ["runs", "list", "--json"]):
            began_s = time.monotonic()
            answer: subprocess.CompletedProcess[str] = lab.hpctool(*words)
            assert time.monotonic() - began_s < 30
            assert "running" in answer.stdout
            sentences = [line for line in answer.stderr.splitlines() if "Slurm could not be asked" in line]
            assert len(sentences) == 1, answer.stderr
            assert "Traceback" not in answer.stderr
    finally:
        lab.cluster.start_controller()
