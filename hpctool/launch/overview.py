"""How the cells of a sweep stand, thousands at once: what has a folder says so itself, the sweep's log the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpctool.errors import HpctoolError
from hpctool.launch import local, sweeplog
from hpctool.launch.cells import Sweep, list_sweep_ids, read_sweep, sweeps_folder
from hpctool.launch.result import current_stories
from hpctool.launch.slurm import accounting, standing
from hpctool.launch.slurm.queue import QUEUE, Answer, Job, Queue
from hpctool.rundir import RunDir, Story

#: How the runs that have a folder stand: `current_stories`, or something quicker that knows more.
Stories = Callable[[list[RunDir]], list[Story]]


def begun(runs: Path) -> set[str]:
    """The names in a runs folder: what is not among them has not begun."""
    try:
        return set(os.listdir(runs))
    except FileNotFoundError:
        return set()


def quick_stories(
    rundirs: list[RunDir], results: dict[str, dict[str, Any]] | None = None, queue: Queue | None = None
) -> list[Story]:
    """Like `current_stories`; a run that completed in its first attempt is known from its result and one entry.

    `results` is filled with what result.json says, by run.
    """
    found: dict[int, Story] = {}
    for index, rundir in enumerate(rundirs):
        result = _result(rundir)
        if results is not None:
            results[rundir.id] = result
        if result.get("state") == "completed" and result.get("attempts") == 1:
            newest = rundir.ledger.newest()
            if newest and newest.body["kind"] == "ended" and newest.body["state"] == "completed":
                found[index] = Story("completed", "", 1, newest.body["step"], entries=[newest])
    slow = [index for index in range(len(rundirs)) if index not in found]
    found |= zip(slow, current_stories([rundirs[index] for index in slow], queue), strict=True)
    return [found[index] for index in range(len(rundirs))]


def _result(rundir: RunDir) -> dict[str, Any]:
    try:
        return rundir.result() or {}
    except (HpctoolError, OSError):  # `runs list` says what is damaged
        return {}


def cell_stories(runs: Path, sweep: Sweep, stories: Stories, queue: Queue | None = None) -> list[Story]:
    """How all cells of a sweep stand, in order of index. One listing of the runs folder, one squeue at most."""
    there, ids = begun(runs), sweep.run_ids
    with_folder = [index for index, run_id in enumerate(ids) if run_id in there]
    told = stories([RunDir(runs / ids[index]) for index in with_folder])
    found = dict(zip(with_folder, told, strict=True))
    # A folder without any entry is that of a cell which begins right now, or of one that was killed doing so.
    without = [index for index in range(len(ids)) if index not in found or not found[index].entries]
    found |= unbegun(runs, sweep, without, queue)
    return [found[index] for index in range(len(ids))]


def unbegun(runs: Path, sweep: Sweep, indices: list[int], queue: Queue | None = None) -> dict[int, Story]:
    """How cells stand that have no folder: queued with the reason, cancelled, or never submitted."""
    if not indices:
        return {}
    queue = queue or QUEUE
    log = sweeplog.SweepLog(sweep.path)
    found = sweeplog.stories(indices, log, queue)
    if any(story.where == "slurm" for story in found.values()):
        _take_reasons(found, sweeplog.newest(log.submissions()), queue.answer())
        _take_ends(found, queue.answer())
        _take_parents(found, runs, sweep)
    elif any(story.where == "local" for story in found.values()):
        _take_local(found, runs, sweep)
    return found


def find_cell(runs: Path, name: str) -> tuple[Sweep, int] | None:
    """The sweep and index of the one cell whose run id is `name` or begins with it; for cells without a folder."""
    found: dict[str, tuple[Sweep, int]] = {}
    for sweep_id in list_sweep_ids(runs):
        sweep = read_sweep(sweeps_folder(runs) / sweep_id)
        found |= {run_id: (sweep, i) for i, run_id in enumerate(sweep.run_ids) if run_id.startswith(name)}
    return found.get(name) or (next(iter(found.values())) if len(found) == 1 else None)


def _take_reasons(found: Mapping[int, Story], latest: Mapping[int, sweeplog.Submission], answer: Answer) -> None:
    """Say why cells wait."""
    first_waiting: dict[str, Job] = {}
    for name, job in answer.jobs.items():
        if job.waits:
            first_waiting.setdefault(name.partition("_")[0], job)
    # Thousands of cells wait for few reasons.
    words: dict[Job, str] = {}
    for index, story in found.items():
        if story.state == "queued" and story.where == "slurm":
            # Cells that any task may claim wait for the first of them.
            known = answer.jobs.get(story.slurm_job_id) or first_waiting.get(latest[index].slurm_job_id)
            if known is not None and known.waits:
                if known not in words:
                    words[known] = standing.waiting(known)
                story.cause = words[known]


def _take_ends(found: Mapping[int, Story], answer: Answer) -> None:
    """Say how jobs ended in which nothing of ours could begin: a module that is not there, a container …"""
    gone = {index: story for index, story in found.items() if story.state == "cancelled" and story.slurm_job_id}
    if not gone:
        return
    ends, _ = accounting.ends(story.slurm_job_id for story in gone.values())
    for story in gone.values():
        job = answer.jobs.get(story.slurm_job_id)
        end = ends.get(story.slurm_job_id) or (accounting.Ended(job.state) if job else None)
        if end is not None:
            story.state, story.cause = end.word, end.cause


def _take_parents(found: Mapping[int, Story], runs: Path, sweep: Sweep) -> None:
    """Say of cells that Slurm has dropped that what they come after did not complete."""
    dropped = {i: story for i, story in found.items() if story.state in ("failed", "cancelled") and story.slurm_job_id}
    after = {i: sweep.body["cells"][i]["after"] for i in dropped if sweep.body["cells"][i].get("after")}
    if not after:
        return
    from hpctool.launch import chain  # which asks here how parents stand

    parents = chain.Parents(runs)
    for index, parent in after.items():
        if why := parents.why_not(parent):
            found[index].state, found[index].cause = "cancelled", why


def _take_local(found: Mapping[int, Story], runs: Path, sweep: Sweep) -> None:
    queued = {row["cell"] for row in local.status(runs) if row["sweep"] == sweep.id}
    for index, story in found.items():
        if story.where == "local" and story.state == "queued" and index not in queued:
            story.state, story.cause = "cancelled", "cancelled before it began"
