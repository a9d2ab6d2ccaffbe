"""Runs that come after others (`after=<run|sweep>`): what Slurm is told, what the job does first, what retry repairs.

A run that comes after another is submitted before anybody knows what it will be made from. run.json says what it
waits for (`after`); what `resolve` would pin is pinned when it starts, on its rank 0, and written into config.yaml.
Slurm starts it when its parent has completed, and drops it if that fails; `retry` of the parent submits it again.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hpctool import config, files
from hpctool.errors import InputError
from hpctool.launch import cells, overview, sweeplog
from hpctool.launch.arrays import Shape
from hpctool.launch.cells import Sweep
from hpctool.launch.job import in_stages, load_job, stages
from hpctool.launch.sweeplog import CLAIMS, Submission, SweepLog
from hpctool.rundir import RunDir, Story, now
from hpctool.world import World

After = dict[str, str] | None
ENDED_BADLY = ("failed", "cancelled")


class Parents:
    """How the runs and sweeps stand that others come after; each is looked at once."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._stories: dict[str, Story] = {}
        self._dependencies: dict[str, str] = {}

    def dependency(self, after: After) -> str:
        """What sbatch is told to wait for; empty if that has completed. Raises InputError where it never will."""
        if after is None:
            return ""
        name = after["id"]
        if name not in self._dependencies:
            ids = self._look(after)
            self._refuse(name, ids)
            self._dependencies[name] = self._wait_for([i for i in ids if self._stories[i].state != "completed"])
        return self._dependencies[name]

    def task(self, after: After) -> tuple[str, int] | None:
        """The array and the index of the task which runs the parent and nothing else; None if there is none."""
        if after is None or after["kind"] == "sweep" or self.dependency(after) == "":
            return None
        array, _, index = self._stories[after["id"]].slurm_job_id.partition("_")
        return (array, int(index)) if index and not self._claimed(after["id"]) else None

    def have_completed(self, after: dict[str, str]) -> bool:
        """Whether nothing is left to wait for."""
        return all(self._stories[run_id].state == "completed" for run_id in self._look(after))

    def why_not(self, after: dict[str, str]) -> str:
        """Why what comes after it cannot begin, as the cause of its end; empty if it has completed or still may."""
        ended = Counter(story.state for i in self._look(after) if (story := self._stories[i]).state in ENDED_BADLY)
        if not ended:
            return ""
        if after["kind"] == "sweep":
            told = " and ".join(f"{number} {state}" for state, number in ended.items())
            return f"cells of its parent {after['id']} did not complete: {told}"
        return f"its parent {after['id']} {'failed' if ended['failed'] else 'was cancelled'}"

    def _wait_for(self, waiting: list[str]) -> str:
        """All jobs that have to end well; where a task runs several cells, that they end, and the job looks itself."""
        tasks: dict[str, set[str]] = {}
        claimed: set[str] = set()
        for run_id in waiting:
            if array := self._claimed(run_id):
                claimed.add(array)
            else:
                job = self._stories[run_id].slurm_job_id
                tasks.setdefault(job.partition("_")[0], set()).add(job)
        jobs = [job for array, members in tasks.items() for job in self._short(array, members)]
        parts = [f"afterok:{':'.join(jobs)}" if jobs else "", *(f"afterany:{array}" for array in sorted(claimed))]
        return ",".join(filter(None, parts))

    def _short(self, array: str, members: set[str]) -> list[str]:
        """`42` for all tasks of an array, else each of them: others of its tasks may have failed and run elsewhere."""
        everybody = [sweep_cell for sweep_cell in self._cells.values() if sweep_cell[0].slurm_job_id == array]
        submissions = [one for one, _ in everybody]
        is_whole = bool(submissions) and len(submissions) == len(submissions[0].cells)
        return [array] if is_whole and len(members) > 1 else sorted(members)

    def _claimed(self, run_id: str) -> str:
        """The array whose tasks claim cells, if one of them runs it; else empty."""
        submission, _ = self._cells.get(run_id, (None, 0))
        if submission is None or submission.mode != CLAIMS:
            return ""
        # It may have been started by itself since then.
        job = self._stories[run_id].slurm_job_id.partition("_")[0]
        return submission.slurm_job_id if job in ("", submission.slurm_job_id) else ""

    def _refuse(self, name: str, ids: Iterable[str]) -> None:
        for run_id in ids:
            story = self._stories[run_id]
            cause = f" ({story.cause})" if story.cause else ""
            if story.state in ENDED_BADLY:
                ended = "failed" if story.state == "failed" else "was cancelled"
                verb = "sweep resume" if name in self._sweeps else "runs retry"
                raise InputError(
                    f"after={name}: {run_id} {ended}{cause}, so what comes after it would never begin. "
                    f"First: hpctool {verb} {name}"
                )
            if story.state != "completed" and story.where != "slurm":
                raise InputError(
                    f"after={name}: {run_id} is {story.state}{cause}, but not on Slurm, which cannot wait for it. "
                    "Ask again when it has completed."
                )

    def _look(self, after: dict[str, str]) -> list[str]:
        """The runs behind a parent, whose stories then are known."""
        ids = self._sweeps[after["id"]].run_ids if after["kind"] == "sweep" else [after["id"]]
        unknown = [run_id for run_id in ids if run_id not in self._stories]
        if not unknown:
            return ids
        there = overview.begun(self.runs)
        begun = [run_id for run_id in unknown if run_id in there]
        told = overview.quick_stories([RunDir(self.runs / run_id) for run_id in begun])
        self._stories |= zip(begun, told, strict=True)
        waiting = {i for i in unknown if i not in self._stories or not self._stories[i].entries}
        for sweep in self._sweeps.values():
            mine = [index for index, run_id in enumerate(sweep.run_ids) if run_id in waiting]
            for index, story in overview.unbegun(self.runs, sweep, mine).items():
                # Of several sweeps with this cell, one that will run it counts.
                if story.entries or sweep.run_ids[index] not in self._stories:
                    self._stories[sweep.run_ids[index]] = story
        return ids

    @functools.cached_property
    def _sweeps(self) -> dict[str, Sweep]:
        folder = cells.sweeps_folder(self.runs)
        return {one: cells.read_sweep(folder / one) for one in cells.list_sweep_ids(self.runs)}

    @functools.cached_property
    def _cells(self) -> dict[str, tuple[Submission, int]]:
        """Each cell that was submitted to Slurm: its newest submission, of the sweep that has it."""
        found = {}
        for sweep in self._sweeps.values():
            for index, one in sweeplog.newest(SweepLog(sweep.path).submissions()).items():
                if one.slurm_job_id:
                    found[sweep.run_ids[index]] = (one, index)
        return found


def arranged(sweep: Sweep, runs: Path, parts: Iterable[Shape]) -> list[Shape]:
    """Shapes split by what their cells wait for; a cell after a cell of an array becomes the task of the same index.

    Raises InputError where a parent will not complete.
    """
    known, found = Parents(runs), []
    for part in parts:
        groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for index in part.cells:
            after = sweep.body["cells"][index].get("after")
            dependency, task = known.dependency(after), known.task(after)
            # Each task after the task of the same index in that array.
            one_by_one = f"aftercorr:{task[0]}" if task else ""
            groups.setdefault((one_by_one or dependency, one_by_one), []).append((index, task[1] if task else 0))
        for (dependency, one_by_one), members in groups.items():
            indices, tasks = [index for index, _ in members], [task for _, task in members]
            is_own = bool(one_by_one) and len(set(tasks)) == len(tasks)
            found.append(replace(part, cells=indices, dependency=dependency, tasks=tasks if is_own else None))
    return found


def check(runs: Path, cells_after: Iterable[After], kind: str) -> None:
    """Refuse what would never begin, before anything is written. Raises InputError."""
    known = Parents(runs)
    for after in {one["id"]: one for one in cells_after if one is not None}.values():
        if kind == "slurm":
            known.dependency(after)
        elif not known.have_completed(after):
            raise InputError(
                f"after={after['id']} has not completed, and cluster={kind} cannot wait for it. Use cluster=slurm, or "
                "ask again when it has."
            )


def settle(rundir: RunDir, world: World) -> str:
    """Before the first attempt of a run that comes after another: pin what `resolve` finds now. Collective.

    Gives why the run cannot begin, empty if it can. Raises what `resolve` raises, on every rank.
    """
    record = rundir.record()
    if not record.get("after"):
        return ""
    return str(world.on_main(lambda: _settle(rundir, record)))


def _settle(rundir: RunDir, record: dict[str, Any]) -> str:
    if rundir.story().of_kind("resolved"):
        return ""
    known, after = Parents(rundir.path.parent), record["after"]
    if not known.have_completed(after):
        return known.why_not(after) or f"its parent {after['id']} has not completed"
    job = load_job(record["job"])
    cfg = config.typed(config.load(rundir.config_yaml), job.Config)
    answer = in_stages(cfg, stages(job))
    plain = config.to_plain(config.resolved(cfg))
    files.write_atomic(rundir.config_yaml, config.to_yaml(OmegaConf.create(plain)))
    inputs = [vars(one) for one in answer.inputs]
    rundir.ledger.append({"kind": "resolved", "inputs": inputs, "time": now()})
    return ""
