"""Cells of a sweep as Slurm arrays: one for each shape of resources, never more cells at once than asked for.

Where the cluster takes fewer tasks than there are cells, fewer are submitted, which claim cells (claims.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpctool import files
from hpctool.errors import SchedulerError, SubmitError
from hpctool.launch import limits, snapshot
from hpctool.launch.cells import Sweep
from hpctool.launch.slurm import loop, site
from hpctool.launch.slurm import script as slurm
from hpctool.launch.slurm.queue import QUEUE, cluster_name
from hpctool.launch.sweeplog import ARRAY, CLAIMS, Living, SweepLog, to_ranges
from hpctool.rundir import RunDir, now

#: Slurm's own default.
MAX_ARRAY_TASKS = 1001
#: What a batch script depends on, beside the name.
SHAPE = ("cluster", "resources", "num_threads")

# QOSMaxSubmitJobPerUserLimit, AssocMaxSubmitJobLimit, `job submit limit`, MaxJobCount, MaxArraySize
_TOO_MANY = re.compile(r"MaxSubmit|GrpSubmit|submit limit|temporarily unable to accept|Invalid job array", re.I)


@dataclass(frozen=True)
class Shape:
    """Cells whose jobs are alike in everything that Slurm sees."""

    cfg: DictConfig
    cells: list[int]
    #: what sbatch is told to wait for
    dependency: str = ""
    #: the index of each cell's task, where it matters (`aftercorr`)
    tasks: list[int] | None = None


@dataclass(frozen=True)
class Array:
    """What Slurm has taken."""

    slurm_job_id: str
    cells: list[int]
    num_tasks: int
    mode: str
    dependency: str = ""


def shapes(cells: Iterable[tuple[int, dict[str, Any]]]) -> list[Shape]:
    """Cells by what their batch scripts depend on; `cells` gives the index and the plain config of each."""
    found: dict[bytes, tuple[dict[str, Any], list[int]]] = {}
    known: dict[tuple[int, ...], bytes] = {}
    for index, plain in cells:
        # Cells of a plan share these parts, and ten thousand need not be spelt out.
        same = tuple(id(plain[key]) for key in SHAPE)
        if same not in known:
            known[same] = files.canonical_json([plain[key] for key in SHAPE])
        found.setdefault(known[same], (plain, []))[1].append(index)
    return [Shape(OmegaConf.create(plain), members) for plain, members in found.values()]


def shares(sizes: Sequence[int], max_parallel: int) -> list[int]:
    """How many cells of each array may run at once, if all arrays together may run `max_parallel`.

    In proportion to their sizes, at least one each; with more arrays than that, every one has a share of one.
    """
    if sum(sizes) <= max_parallel:
        return list(sizes)
    found = [1] * len(sizes)
    while sum(found) < max_parallel:
        wanting = [number for number, size in enumerate(sizes) if found[number] < size]
        found[max(wanting, key=lambda number: sizes[number] / found[number])] += 1
    return found


def submit(
    sweep: Sweep,
    runs: Path,
    parts: list[Shape],
    max_parallel: int,
    code: dict[str, Any],
    begun: Collection[int],
    seen: int,
) -> list[Array]:
    """Submit cells, as arrays that together never run more than `max_parallel` of them at once.

    `begun` are those cells that have run folders, `seen` is how far the sweep's log was when they were chosen. Raises
    ConflictError where somebody else has submitted some since, SubmitError, which says what was queued before.
    """
    queued: list[Array] = []
    free, lanes = _free(SweepLog(sweep.path), max_parallel)
    room = Room()
    for part, share in zip(parts, shares([len(part.cells) for part in parts], free), strict=True):
        # More arrays than may run at once stand in as many lanes, each behind the one before it.
        lane = len(queued) % free
        behind = f"afterany:{lanes[lane]}" if lane < len(lanes) else ""
        try:
            array = _Submitter(sweep, runs, part, share, room.tasks(part.cfg), code, begun, seen).submit(behind)
        except SubmitError as error:
            raise _with_what_is_queued(error, sweep, queued) from error
        queued.append(array)
        lanes[lane : lane + 1] = [array.slurm_job_id]
    return queued


def _free(log: SweepLog, max_parallel: int) -> tuple[int, list[str]]:
    """How many more cells of a sweep may run at once, and the arrays that have to end first if none may now."""
    submissions = [one for one in log.submissions() if one.slurm_job_id]
    lives = Living(QUEUE.answer(), log) if submissions else None
    busy = [(lives.running_at_most(one), one) for one in submissions] if lives else []
    taken = sum(number for number, _ in busy)
    if taken < max_parallel:
        return max_parallel - taken, []
    # In place of the one that has the least left.
    number, first = min((item for item in busy if item[0]), key=lambda item: (item[0], len(item[1].cells)))
    return number, [first.slurm_job_id] * number


def _with_what_is_queued(error: SubmitError, sweep: Sweep, queued: list[Array]) -> SubmitError:
    if not queued:
        return error
    told = ", ".join(f"Slurm job {one.slurm_job_id} has cells {to_ranges(one.cells)}" for one in queued)
    error.args = (f"{error} Queued before that: {told}. hpctool sweep resume {sweep.id} submits the others.",)
    return error


@dataclass(frozen=True)
class _Submitter:
    """One shape on its way to Slurm."""

    sweep: Sweep
    runs: Path
    part: Shape
    share: int
    most: int
    code: dict[str, Any]
    begun: Collection[int]
    seen: int

    def submit(self, dependency: str) -> Array:
        """Ask until it is taken: with a task for each cell, or with as many tasks as Slurm allows."""
        mode, num_tasks, at_once = layout(self.part, self.share, self.most)
        while True:
            try:
                job_id = self._ask(mode, num_tasks, at_once, self._options(mode, dependency))
                return Array(job_id, self.part.cells, num_tasks, mode, self.part.dependency)
            except SubmitError as error:
                if num_tasks == 1 or not _TOO_MANY.search(error.reason):
                    raise
                mode, num_tasks = CLAIMS, min(num_tasks // 2, max(1, self.share // at_once))

    def _options(self, mode: str, behind: str) -> list[str]:
        """What only this submission is told; the script can be submitted again without it."""
        part, found = self.part, []
        # Tasks that claim cells cannot each wait for another one; their jobs look whether the parent has completed.
        dependency = part.dependency if mode == ARRAY else part.dependency.replace("aftercorr:", "afterany:")
        if behind or dependency:
            found.append(f"--dependency={','.join(filter(None, (behind, dependency)))}")
        if dependency:
            found.append("--kill-on-invalid-dep=yes")
        if part.tasks is not None and mode == ARRAY:
            found.append(f"--array={to_ranges(sorted(part.tasks))}%{self.share}")
        return found

    def _ask(self, mode: str, num_tasks: int, at_once: int, options: Sequence[str]) -> str:
        log = SweepLog(self.sweep.path)
        tasks = self.part.tasks if mode == ARRAY else None
        number = log.submitting(self.part.cells, mode, self.code, self.share, tasks, self.seen)
        script = self._write(number, mode, num_tasks, at_once)
        try:
            job_id = slurm.submit_script(script, *options)
        except SubmitError as error:
            # Else it is looked for in the queue when somebody asks again.
            if not slurm.may_have_been_taken(error):
                log.refused(number, error.reason)
            raise
        log.submitted(number, job_id)
        for position, index in enumerate(self.part.cells):
            if index in self.begun:
                # What has a ledger of its own is looked for there. A cell that is to be claimed has no job yet.
                task = f"{job_id}_{tasks[position] if tasks else position}" if mode == ARRAY else ""
                rundir = RunDir(self.runs / self.sweep.run_ids[index])
                body = {"kind": "submitted", "where": "slurm", "slurm_job_id": task, "array": job_id, "time": now()}
                rundir.ledger.append({**body, "cluster": cluster_name()})
                rundir.reopen()
        return job_id

    def _write(self, number: int, mode: str, num_tasks: int, at_once: int) -> Path:
        """The submission's list of cells and its script, which can be handed to sbatch again."""
        folder = self.sweep.path / "submissions"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:04d}.json"
        ids, listed = self.sweep.run_ids, list[int | None](self.part.cells)
        if self.part.tasks is not None and mode == ARRAY:
            by_task = dict(zip(self.part.tasks, self.part.cells, strict=True))
            listed = [by_task.get(task) for task in range(max(by_task) + 1)]
        cluster, resources = self.part.cfg.cluster, self.part.cfg.resources
        body = {
            **{"format": 1, "runs": str(self.runs), "sweep": self.sweep.id, "cells": listed, "time": now()},
            **{"mode": mode, "ids": [ids[index] for index in self.part.cells]},
            **{"time_s": limits.time_limit_s(resources.time), "signal_delay_s": cluster.signal_delay_s},
        }
        files.write_atomic(path, files.canonical_json(body))
        environment = snapshot.environment_of(self.runs, self.code, self.sweep.body["cwd"])
        text = _script(path, mode, num_tasks, self.share, self.part.cfg, environment, at_once)
        files.write_atomic(path.with_suffix(".sh"), text, mode=0o755)
        return path.with_suffix(".sh")


def layout(part: Shape, share: int, most: int) -> tuple[str, int, int]:
    """The mode of an array of `most` tasks or fewer, their number, and how many cells each of them runs at once."""
    at_once = min(part.cfg.cluster.cells_at_once, share)
    if at_once == 1 and len(part.cells) <= most:
        return ARRAY, len(part.cells), at_once
    return CLAIMS, max(1, min(share // at_once, most)), at_once


def preview(
    plains: Iterable[dict[str, Any]], max_parallel: int, submission: Path, environment: dict[str, str]
) -> list[str]:
    """The batch scripts of a sweep that is not submitted: one for each shape, all as that of `submission`."""
    parts = shapes(enumerate(plains))
    found, room = [], Room()
    for part, share in zip(parts, shares([len(part.cells) for part in parts], max_parallel), strict=True):
        mode, num_tasks, at_once = layout(part, share, room.tasks(part.cfg))
        found.append(_script(submission, mode, num_tasks, share, part.cfg, environment, at_once))
    return found


def _script(
    submission: Path,
    mode: str,
    num_tasks: int,
    share: int,
    cfg: DictConfig,
    environment: dict[str, str],
    cells_at_once: int,
) -> str:
    if mode == CLAIMS:
        return loop.claims_script(submission, num_tasks, cfg, environment, cells_at_once)
    return slurm.array_script(submission, num_tasks, share, cfg, environment)


class Room:
    """How many tasks of an array Slurm takes from this user now, as far as it says: its size and limits on jobs."""

    def __init__(self) -> None:
        self.site: site.Site | None = None
        with contextlib.suppress(SchedulerError):
            self.site = site.read()

    def tasks(self, cfg: DictConfig) -> int:
        """The most tasks of an array with this config. What is wrong in it comes out when sbatch refuses."""
        if self.site is None:
            return MAX_ARRAY_TASKS
        cluster, found = cfg.cluster, self.site.max_array_tasks
        with contextlib.suppress(SchedulerError):
            most = self.site.max_submit_jobs(cluster.qos, cluster.account, cluster.partition)
            if most is not None:
                queued = sum(not job.is_over for job in QUEUE.answer().jobs.values())
                # With no room at all sbatch is asked for one, and says why not.
                found = min(found, max(1, most - queued))
        return found
