"""Searches that are there: start their workers, resume with other limits, cancel."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import EXIT_DONE, EXIT_FAILED, InputError, counted
from hpctool.launch import snapshot, sweeps
from hpctool.launch.cells import Sweep, read_sweep, sweeps_folder
from hpctool.launch.handover import mark_submitted
from hpctool.launch.overview import cell_stories, quick_stories
from hpctool.launch.start import Say
from hpctool.launch.sweeplog import SweepLog
from hpctool.rundir import OVER, SHORT, UNDERWAY, RunDir, now, who
from hpctool.search.journal import Journal
from hpctool.search.spec import Spec, identity_of, read_spec, worker_identity


@dataclass(frozen=True)
class Limits:
    """How long a search goes on; None: without that limit."""

    max_trials: int | None = None
    hours: float | None = None
    deadline_s: float | None = None


def open_search(runs: Path, sweep_id: str) -> tuple[Sweep, Spec, Journal]:
    """A search that is there, its journal read. Raises UnknownName, CorruptError, NewerFormat."""
    folder = sweeps_folder(runs) / sweep_id
    spec = read_spec(folder)
    journal = Journal(folder, spec)
    journal.read()
    return read_sweep(folder), spec, journal


def start(
    runs: Path, sweep_id: str, slots: Iterable[int], say: Say, seen: int, code: dict[str, Any] | None = None
) -> int:
    """Start workers; the exit code of those that run here, 1 where they have found nothing, else 0. `seen`: how far the
    sweep's log was when they were found to be idle. Raises ConflictError, SubmitError, SchedulerError, InputError.
    """
    sweep = read_sweep(sweeps_folder(runs) / sweep_id)
    todo = list(slots)
    for slot in todo:
        rundir = RunDir(runs / sweep.run_ids[slot])
        if rundir.run_json.exists() and rundir.story().state == "completed":
            # Done for then; asked for again, it looks for more.
            mark_submitted(rundir, "local")
    code_here = sweeps.start_again(sweep, runs, todo, say, seen, code)
    return code_here or exit_code(runs, sweep_id)


def exit_code(runs: Path, sweep_id: str) -> int:
    """1 where a search has stopped without an answer: its workers have done their work all the same."""
    state = open_search(runs, sweep_id)[2].state
    return EXIT_FAILED if state.stopped and not state.has_answer else EXIT_DONE


def idle_slots(sweep: Sweep, runs: Path) -> list[int]:
    """The workers that nobody runs or will run. Raises ConflictError, SchedulerError."""
    sweeps.find_unknown(sweep)
    standing = cell_stories(runs, sweep, quick_stories)
    return [slot for slot, story in enumerate(standing) if story.state not in UNDERWAY or not story.entries]


def resume(runs: Path, sweep_id: str, say: Say, limits: Limits | None = None, *, code_now: bool = False) -> int:
    """Let a search go on, with other limits if some are given; starts the workers that are not there.

    Raises InputError, SubmitError, SchedulerError.
    """
    sweep, _, journal = open_search(runs, sweep_id)
    state = journal.state
    new = limits or Limits(state.max_trials, state.hours, state.deadline_s)
    if new.deadline_s is not None and new.deadline_s <= time.time():
        raise InputError(f"The deadline of {sweep_id} has passed; give it another search.budget.deadline.")
    if state.stopped or new != Limits(state.max_trials, state.hours, state.deadline_s):
        if state.stopped:
            # The words of an error end as they like.
            end = "" if state.stopped.endswith((".", "?")) else "."
            say(f"search {sweep_id} had stopped: {state.stopped}{end} It goes on.")
        journal.add("resume", max_trials=new.max_trials, hours=new.hours, deadline_s=new.deadline_s)
    seen = SweepLog(sweep.path).last()
    todo = idle_slots(sweep, runs)
    there, workers = counted(len(state.trials), "trial"), counted(len(sweep.run_ids), "worker")
    say(f"search {sweep_id}: {there} so far, starting {len(todo)} of {workers}")
    if not todo:
        return EXIT_DONE
    code = snapshot.take(runs, Path(sweep.body["cwd"])).record() if code_now else None
    return start(runs, sweep_id, todo, say, seen, code)


def add_workers(runs: Path, sweep_id: str, num_workers: int) -> int:
    """Let a search have so many workers, if it has fewer; how many it has. They start with the next `resume`.

    A worker comes into sweep.json as a cell like those that are there. Raises InputError, OSError.
    """
    with SweepLog(sweeps_folder(runs) / sweep_id).changing():
        sweep, spec, _ = open_search(runs, sweep_id)
        cells = sweep.body["cells"]
        if num_workers <= len(cells) or _is_inline(sweep):
            return len(cells)
        identity, last = identity_of(spec), cells[-1]
        for slot in range(len(cells), num_workers):
            own = worker_identity(identity, slot)
            run_id = f"{last['run'].rpartition('-')[0]}-{own[:SHORT]}"
            cells.append({**last, "index": slot, "identity": own, "run": run_id, "set": {**last["set"], "slot": slot}})
        for base in sweep.body["bases"]:
            base["search"]["workers"] = base["cluster"]["max_parallel"] = num_workers
        files.write_json(sweep.path / "sweep.json", sweep.body)
        return num_workers


def _is_inline(sweep: Sweep) -> bool:
    return bool(sweep.body["bases"][0]["cluster"]["kind"] == "inline")


def resume_with(
    runs: Path,
    sweep_id: str,
    say: Say,
    max_trials: int | None,
    hours: float | None,
    num_workers: int | None = None,
    *,
    code_now: bool,
) -> int:
    """Let a search go on; what is given takes the place of that limit. Raises as `resume` does."""
    if num_workers is not None and (there := add_workers(runs, sweep_id, num_workers)) != num_workers:
        if _is_inline(read_sweep(sweeps_folder(runs) / sweep_id)):
            raise InputError(
                f"{sweep_id} has cluster=inline: one process, in which trials come one after the other, so it cannot "
                f"have {num_workers} workers. Make a search with cluster=local or cluster=slurm; with "
                f"search.from={sweep_id} it begins with what is known here."
            )
        has = counted(there, "worker")
        raise InputError(f"{sweep_id} has {has}, and cannot have {num_workers}: they are only ever added.")
    _, _, journal = open_search(runs, sweep_id)
    state = journal.state
    limits = Limits(max_trials or state.max_trials, hours or state.hours, state.deadline_s)
    return resume(runs, sweep_id, say, limits, code_now=code_now)


def cancel(runs: Path, sweep_id: str, say: Say) -> None:
    """End a search for good: nothing more is begun, what trains saves if it can. Raises InputError, SchedulerError."""
    sweep, _, journal = open_search(runs, sweep_id)
    journal.add("stop", why=f"cancelled by {who()}")
    running = [trial for trial in journal.state.trials.values() if trial.state == "running"]
    for trial in running:
        rundir = RunDir(runs / trial.run)
        if rundir.run_json.exists() and rundir.story().state not in OVER:
            rundir.ledger.append({"kind": "cancel", "by": who(), "time": now()})
    if len(idle_slots(sweep, runs)) < len(sweep.run_ids):
        sweeps.cancel(sweep, runs, say)
    there, told = counted(len(journal.state.trials), "trial"), "is" if len(running) == 1 else "are"
    say(f"search {sweep_id} is cancelled: {there}, {len(running)} of them {told} told to stop.")


def retry(runs: Path, sweep_id: str, say: Say, states: Collection[str] = ("failed",)) -> int:
    """Give trials that failed another chance, and start the workers. Raises InputError, SubmitError."""
    _, _, journal = open_search(runs, sweep_id)
    failed = [trial for trial in journal.state.trials.values() if trial.state in states]
    if not failed:
        raise InputError(f"No trial of {sweep_id} has failed.")
    for trial in failed:
        journal.add("again", t=trial.number, fence=trial.fence)
    say(f"search {sweep_id}: {counted(len(failed), 'failed trial')} to be tried again.")
    return resume(runs, sweep_id, say)
