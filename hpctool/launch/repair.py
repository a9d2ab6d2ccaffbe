"""When a run starts again, what had come after it and was dropped is submitted again, to wait for the new job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hpctool import config
from hpctool.errors import SchedulerError
from hpctool.launch import cells, overview, sweeps
from hpctool.launch.cells import Sweep
from hpctool.launch.chain import After
from hpctool.launch.result import current_story
from hpctool.launch.slurm import ask
from hpctool.launch.start import start
from hpctool.launch.sweeplog import ARRAY, SweepLog, newest
from hpctool.rundir import RunDir, Story

Say = Callable[[str], None]


def note_child(runs: Path, parent: After, child: str) -> None:
    """Write down at the parent that `child`, a run or a sweep, comes after it."""
    if parent is None:
        return
    rundir = RunDir(runs / parent["id"])
    if parent["kind"] == "sweep":
        SweepLog(cells.sweeps_folder(runs) / parent["id"]).has_child(child)
    elif rundir.run_json.exists():
        if child not in _children(rundir):
            rundir.ledger.append({"kind": "child", "child": child})
    else:
        for sweep_id in cells.list_sweep_ids(runs):
            sweep = cells.read_sweep(cells.sweeps_folder(runs) / sweep_id)
            if parent["id"] in sweep.run_ids:
                SweepLog(sweep.path).has_child(child)


def after_restart(runs: Path, restarted: Iterable[str], say: Say, sweep: str = "") -> None:
    """Submit again what came after these runs, cells of `sweep` if it is given, and was dropped when they ended.

    What its user has cancelled stays cancelled. Raises SubmitError.
    """
    again = set(restarted)
    found: dict[str, None] = {}
    for run_id in again:
        rundir = RunDir(runs / run_id)
        if rundir.run_json.exists():
            found |= dict.fromkeys(_children(rundir))
            sweep = sweep or rundir.record().get("sweep") or ""
    if sweep:
        found |= dict.fromkeys(SweepLog(cells.sweeps_folder(runs) / sweep).children())
    known = set(cells.list_sweep_ids(runs))
    for child in found:
        if child in known:
            _repair_sweep(cells.read_sweep(cells.sweeps_folder(runs) / child), runs, again, sweep, say)
        elif (runs / child / "run.json").exists():
            _repair_run(RunDir(runs / child), again, sweep, say)


def _repair_run(rundir: RunDir, again: set[str], sweep: str, say: Say) -> None:
    story = current_story(rundir)
    if not _waited_for(rundir.record()["after"], again, sweep) or not _was_dropped(story):
        return
    _withdraw([story.slurm_job_id])
    say(f"run {rundir.id} comes after it and waits for it again.")
    rundir.result_json.unlink(missing_ok=True)
    start(rundir, config.load(rundir.config_yaml), say, story.last)
    after_restart(rundir.path.parent, [rundir.id], say)


def _repair_sweep(child: Sweep, runs: Path, again: set[str], sweep: str, say: Say) -> None:
    seen = SweepLog(child.path).last()
    members: list[dict[str, Any]] = child.body["cells"]
    mine = [index for index, cell in enumerate(members) if _waited_for(cell.get("after"), again, sweep)]
    standing = overview.cell_stories(runs, child, overview.quick_stories)
    cancelled = {i for i, one in newest(SweepLog(child.path).submissions()).items() if i in one.cancelled}
    dropped = [index for index in mine if index not in cancelled and _was_dropped(standing[index])]
    latest = newest(SweepLog(child.path).submissions())
    _withdraw(standing[i].slurm_job_id for i in dropped if i in latest and latest[i].mode == ARRAY)
    if dropped:
        say(f"{len(dropped)} of {len(members)} cells of sweep {child.id} come after it and wait for it again.")
        sweeps.start_again(child, runs, dropped, say, seen)


def _waited_for(after: After, again: set[str], sweep: str) -> bool:
    return after is not None and after["id"] in (again | {sweep} if sweep else again)


def _was_dropped(story: Story) -> bool:
    """Whether a run has not begun to work, and its user has not cancelled it."""
    if story.state not in ("queued", "failed", "cancelled"):
        return False
    return not story.of_kind("resolved") and not story.of_kind("cancel")


def _withdraw(jobs: Iterable[str]) -> None:
    """Jobs that wait for a job that has ended badly: Slurm may not have dropped them yet."""
    waiting = [job for job in jobs if job]
    if waiting:
        with contextlib.suppress(SchedulerError):
            ask.call("scancel", "--state=PENDING", *waiting)


def _children(rundir: RunDir) -> list[str]:
    return [body["child"] for body in rundir.story().of_kind("child")]
