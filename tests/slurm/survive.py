"""What the tests of survival share: a 2-node × 2-task training on the real cluster, and looking at how it went."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool.rundir import RunDir, Story

LAB = Path(__file__).parent / "lab"
STEPS = 24
STEP_S = 0.25
#: with several ranks every attempt first takes two passes that let DDP settle
WARM_UP = 2

TRAIN = [
    *("train", "cluster=slurm", "data.name=digits", "model=mlp", f"loop.max_steps={STEPS}", "track=off"),
    *("resources.nodes=2", "resources.tasks_per_node=2", "loop.checkpoint_every_steps=8", "loop.eval_every_steps=12"),
    *("task._target_=labtask.Slow", f"+task.step_s={STEP_S}", "cluster.signal_delay_s=20", "resources.time=10"),
]


@dataclass
class Lab:
    """A project folder of the ordinary user's on the cluster, with the digits prepared."""

    cluster: Any
    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def hpctool(self, *arguments: str, check: bool = True) -> Any:
        """Run hpctool as the ordinary user, in the project folder."""
        command = [sys.executable, "-m", "hpctool.cli.main", *arguments]
        return self.cluster.run(*command, cwd=self.folder, check=check)

    def train(self, name: str, *overrides: str) -> RunDir:
        """Submit a training and give its run folder."""
        done = self.hpctool(*TRAIN, f"name={name}", f"+task.run={name}", *overrides, "--json")
        return RunDir(self.runs / json.loads(done.stdout)["runs"][0])

    def faulty(self, name: str, fault: str, rank: int, at: int, *overrides: str, times: int = 1) -> RunDir:
        """Submit a training in which a rank does something bad in its pass `at`, in the first `times` attempts."""
        faults = self.folder / f"{name}.faults"
        faults.write_text("due\n" * times)
        faults.chmod(0o666)
        arguments = [f"+task.fault={fault}", f"+task.rank={rank}", f"+task.at={at}", f"+task.faults={faults}"]
        return self.train(name, *arguments, *overrides)

    def sweep(self, name: str, *overrides: str) -> list[RunDir]:
        """Submit a sweep of cells with one rank each."""
        # A node each: 8 CPUs are all that a node has.
        one = ["resources.nodes=1", "resources.tasks_per_node=1", "resources.cpus_per_task=8"]
        done = self.hpctool(*TRAIN, f"name={name}", f"+task.run={name}", *one, *overrides, "-m", "--json")
        return [RunDir(self.runs / run_id) for run_id in json.loads(done.stdout)["runs"]]

    def node_of(self, run: RunDir) -> str:
        """Where a run's rank 0 is."""
        return str(run.story().of_kind("begun")[-1]["host"])

    def stays_away(self, run: RunDir) -> None:
        """Check that Slurm does not start a run's job once more."""
        job_id = run.story().slurm_job_id
        self.cluster.wait_state(job_id, {"CANCELLED", "FAILED"})
        assert self.cluster.job(job_id)["Restarts"] == "0"

    def until(self, run: RunDir, what: Callable[[Story], Any], timeout_s: float = 90.0, hurry: bool = False) -> Story:
        """Wait until a run's story is so; with `hurry`, without the two minutes after a requeue."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            story = run.story() if (run.path / "ledger").exists() else Story()
            if what(story):
                return story
            if hurry:
                self.start_now(story)
            assert time.monotonic() < deadline_s, f"{run.id} is {story.state} ({story.cause}):\n{self.words(run)}"
            time.sleep(0.1)

    def appears(self, name: str, timeout_s: float = 60.0) -> RunDir:
        """Wait for the run folder of a job that nobody has told us the id of."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := sorted(self.runs.glob(f"{name}-????????"))):
            assert time.monotonic() < deadline_s, f"no run {name} has appeared"
            time.sleep(0.1)
        return RunDir(found[0])

    def until_training(self, run: RunDir, attempt: int = 1, seconds: float = 1.0) -> None:
        """Wait until an attempt takes steps."""
        self.until(run, lambda story: any(body["attempt"] == attempt for body in story.of_kind("resumed")))
        time.sleep(seconds)

    def until_attempt(self, run: RunDir, attempt: int) -> None:
        """Wait until Slurm has started a requeued run once more."""
        self.until(run, lambda story: story.attempt >= attempt, hurry=True)

    def until_checkpoint(self, run: RunDir, step: int) -> None:
        """Wait until a run has saved at this step or after it."""
        self.until(run, lambda story: story.checkpoints and story.checkpoints[-1]["step"] >= step)

    def start_now(self, story: Story) -> None:
        """Skip the two minutes that Slurm lets a requeued job wait, but not all of them.

        A node refuses a job that begins in the second in which it was killed there ("Job credential revoked").
        """
        shown = self.cluster.run("scontrol", "--oneliner", "show", "job", story.slurm_job_id, check=False).stdout
        since = re.search(r" JobState=PENDING .* SubmitTime=(\S+) ", shown)
        if since and time.time() - datetime.datetime.fromisoformat(since[1]).timestamp() > 2.0:
            self.cluster.as_root("scontrol", "update", f"JobId={story.slurm_job_id}", "StartTime=now", check=False)

    def until_ended(self, run: RunDir, attempts: int, timeout_s: float = 120.0, at_least: bool = False) -> Story:
        """Wait for the end of a run after so many attempts."""
        deadline_s = time.monotonic() + timeout_s
        while (story := run.story()).state not in ("completed", "failed", "cancelled"):
            assert time.monotonic() < deadline_s, f"{run.id} is {story.state} ({story.cause}):\n{self.words(run)}"
            self.start_now(story)
            time.sleep(0.5)
        self.cluster.ended.append((self, run))
        fits = story.attempt >= attempts if at_least else story.attempt == attempts
        assert fits, f"attempts: {story.attempt}, {story.state} {story.cause}\n{self.words(run)}"
        return story

    def digest(self, run: RunDir) -> str:
        """The digest of a completed run's parameters."""
        result = run.result()
        assert result is not None
        assert result["state"] == "completed"
        return str(result["param_digest"])

    def passes(self, run: RunDir, attempt: int) -> list[int]:
        """How many passes each rank has begun in an attempt; none of tasks that are not the lab's."""
        return [int(path.read_text() or 0) for path in (self.folder / "passes").glob(f"{run.id}.{attempt}.*")]

    def steps_lost(self, run: RunDir, attempt: int = 1) -> int:
        """The steps that the attempt after `attempt` took once more: those begun, less the one resumed from."""
        resumed = {body["attempt"]: body["step"] for body in run.story().of_kind("resumed")}
        passes = self.passes(run, attempt)
        begun = int(resumed[attempt]) + max(passes) - (WARM_UP if len(passes) > 1 else 0)
        return begun - int(resumed[attempt + 1])

    def how_it_went(self, run: RunDir) -> str:
        """A run's end in a line, for the end of the tests."""
        story = run.story()
        known = {body["attempt"] for body in story.of_kind("resumed") if self.passes(run, body["attempt"])}
        lost = [str(self.steps_lost(run, attempt)) for attempt in sorted(known) if attempt + 1 in known]
        told = f"{run.id} {story.state} in attempt {story.attempt}"
        told += f", steps lost {' and '.join(lost)}" if lost else ""
        return f"{told} ({story.cause})" if story.cause else told

    def words(self, run: RunDir) -> str:
        """Everything that was said, for a test that fails."""
        logs = sorted((run.path / "logs").rglob("*"), key=lambda path: path.stat().st_mtime)
        texts = [
            f"--- {path.relative_to(run.path)}\n{path.read_text(errors='replace')}" for path in logs if path.is_file()
        ]
        entries = [json.dumps(entry.body) for entry in run.story().entries]
        return "\n".join([*entries, *texts])


def make_lab(cluster: Any, folder: Path) -> Lab:
    """Fill a project folder and prepare the digits there."""
    for name in ("labtask.py", "sitecustomize.py"):
        shutil.copy(LAB / name, folder)
    (folder / "passes").mkdir(mode=0o777)
    (folder / "passes").chmod(0o777)
    lab = Lab(cluster, folder)
    lab.hpctool("prepare", "data.name=digits", "source=digits")
    return lab
