"""Sweeps that are there: start what is left of one, try failed cells once more, cancel. From sweep.json alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hpctool.errors import EXIT_CONTINUE, EXIT_DONE, EXIT_INTERRUPTED, ConflictError, InputError
from hpctool.launch import arrays, cells, chain, endings, handover, local, overview, signals, snapshot, task
from hpctool.launch.cells import Sweep
from hpctool.launch.overview import cell_stories, quick_stories
from hpctool.launch.result import current_story
from hpctool.launch.slurm import ask, check, inside
from hpctool.launch.slurm import script as slurm
from hpctool.launch.slurm.queue import QUEUE
from hpctool.launch.slurm.standing import is_elsewhere
from hpctool.launch.start import short, ticket
from hpctool.launch.sweeplog import ARRAY, CLAIMS, LOCAL, Living, SweepLog, is_in_slurm, newest, stories
from hpctool.place import Place
from hpctool.rundir import OVER, UNDERWAY, RunDir, Story, now, who
from hpctool.world import World

Say = Callable[[str], None]


def is_settled(story: Story) -> bool:
    """Whether a run is done or under way."""
    if story.state == "completed":
        return True
    begun = story.of_kind("begun")
    if story.where == "inline" and begun:
        # Nobody brings it back but who asks for it now: a person, or the job script whose earlier start it was.
        mine = inside.is_job("inline") and begun[-1].get("slurm_job_id") == inside.slurm_job_id()
        if mine or story.state == "requeued":
            return False
    # A folder without any entry is what a submission left that was killed half-way.
    return story.state in UNDERWAY and bool(story.entries)


class Left(NamedTuple):
    """The cells that nobody will run, how many of the others are done, queued …, and how far the log was then."""

    todo: list[int]
    counts: Counter[str]
    seen: int


def left_to_do(sweep: Sweep, runs: Path, say: Say) -> Left:
    """What is left of a sweep. Says it if Slurm does not answer.

    Raises ConflictError while somebody else is submitting the sweep, SchedulerError if that cannot be known.
    """
    find_unknown(sweep)
    seen = SweepLog(sweep.path).last()
    standing = cell_stories(runs, sweep, quick_stories)
    for index in (index for index, story in enumerate(standing) if handover.is_unknown(story)):
        # It was submitted as a run by itself, by somebody who ended before Slurm's answer.
        rundir = RunDir(runs / sweep.run_ids[index])
        handover.find_submitted(rundir)
        standing[index] = current_story(rundir)
    lost = local.lost(runs, dict(zip(sweep.run_ids, standing, strict=True)))
    open_ = [i for i, story in enumerate(standing) if not is_settled(story) or sweep.run_ids[i] in lost]
    elsewhere = queued_cells(runs, [sweep.run_ids[index] for index in open_], but=sweep.id)
    todo = [index for index in open_ if sweep.run_ids[index] not in elsewhere]
    settled = [standing[index] for index in sorted({*range(len(standing))}.difference(open_))]
    counts = Counter("done" if story.state == "completed" else story.state for story in settled)
    if elsewhere:
        counts["queued in another sweep"] = len(open_) - len(todo)
    if QUEUE.problem:
        say(f"{QUEUE.problem} Cells that Slurm had are taken to be there still.")
    return Left(todo, counts, seen)


def queued_cells(runs: Path, run_ids: Iterable[str], but: str = "") -> dict[str, str]:
    """Which of these runs, none of which has begun, will begin as a cell of some sweep: run id → sweep id.

    A run may be a cell of several sweeps, and must not run for each of them. `but` is a sweep to leave out.
    """
    wanted = set(run_ids)
    found = {row["run"]: row["sweep"] for row in local.status(runs) if row["run"] in wanted and row["sweep"]}
    for sweep_id in cells.list_sweep_ids(runs):
        log = SweepLog(cells.sweeps_folder(runs) / sweep_id)
        if sweep_id == but or not is_in_slurm(log):
            continue
        ids = cells.read_sweep(log.folder).run_ids
        standing = stories([index for index, run_id in enumerate(ids) if run_id in wanted], log)
        found |= {ids[i]: sweep_id for i, story in standing.items() if story.entries and story.where == "slurm"}
    return found


def start_cells(
    sweep: Sweep, runs: Path, parts: list[arrays.Shape], code: dict[str, Any], say: Say, seen: int
) -> list[str]:
    """Start cells where their config says: here, in the local queue or on Slurm. Gives the Slurm jobs' ids.

    `seen`: how far the sweep's log was when that was decided.
    Raises ConflictError where somebody else has submitted some since, SubmitError, SchedulerError, OSError.
    """
    todo = [index for part in parts for index in part.cells]
    cluster = parts[0].cfg.cluster
    if cluster.kind == "slurm":
        parts = chain.arranged(sweep, runs, parts)
    begun = _take_up(sweep, runs, todo, code)
    if cluster.kind == "local":
        SweepLog(sweep.path).submitting(todo, LOCAL, code, cluster.max_parallel, seen=seen)
        # All of one shape have the same ticket but for the names.
        shaped = [(part, ticket(part.cfg, "")) for part in parts]
        named = [(index, one) for part, one in shaped for index in part.cells]
        local.enqueue(runs, [one.of_cell(sweep.run_ids[index], sweep.id, index) for index, one in sorted(named)])
        say(f"The cells run in the background here, {cluster.max_parallel} at once. hpctool sweep status {sweep.id}")
        return []
    queued = arrays.submit(sweep, runs, parts, cluster.max_parallel, code, begun, seen)
    for array in queued:
        how = "each a cell" if array.mode == ARRAY else f"which claim {len(array.cells)} cells one after the other"
        after = f", after {array.dependency}" if array.dependency else ""
        say(f"Slurm array {array.slurm_job_id}: {array.num_tasks} tasks, {how}{after}.")
    say(f"hpctool sweep status {sweep.id}")
    if begun or len(SweepLog(sweep.path).submissions()) > len(parts):
        from hpctool.launch import repair

        repair.after_restart(runs, [sweep.run_ids[index] for index in todo], say, sweep.id)
    return [array.slurm_job_id for array in queued]


def run_here(sweep: Sweep, runs: Path, todo: Collection[int], code: dict[str, Any], say: Say) -> int:
    """Run cells in this process, one after the other; the first exit code that is not 0.

    Once it is told to stop no further one begins, and its exit code says so.
    """
    _take_up(sweep, runs, todo, code)
    codes: list[int] = []
    # Once for all of them: what arrives while one ends and the next begins means the next, too.
    signals.install()
    for index in todo:
        if signals.stop_requested() or EXIT_INTERRUPTED in codes:
            say(f"Told to stop: {len(todo) - len(codes)} cells have not begun. The same command goes on with them.")
            return EXIT_CONTINUE if signals.stop_cause() not in ("", "interrupted") else EXIT_INTERRUPTED
        codes.append(task.run_attempt(cells.open_cell(runs, sweep.id, index), "inline", Place(), World()))
    return next((code for code in codes if code != EXIT_DONE), EXIT_DONE)


def resume(sweep: Sweep, runs: Path, say: Say, *, states: Collection[str] = (), code_now: bool = False) -> int:
    """Start the cells of a sweep that nobody will run, or those of them that ended in `states`; the exit code.

    The code is that of the last submission; `code_now`: as it is now in the folder that the sweep came from.
    Raises InputError, SubmitError, SchedulerError.
    """
    todo, counts, seen = left_to_do(sweep, runs, say)
    if states:
        standing = cell_stories(runs, sweep, quick_stories)
        todo = [index for index in todo if standing[index].state in states]
    say(progress(sweep, counts, len(todo)))
    if not todo:
        return EXIT_DONE
    code = snapshot.take(runs, Path(sweep.body["cwd"])).record() if code_now else None
    return start_again(sweep, runs, todo, say, seen, code)


def start_again(
    sweep: Sweep, runs: Path, todo: Collection[int], say: Say, seen: int, code: dict[str, Any] | None = None
) -> int:
    """Start cells as sweep.json has them, with the code of the last submission if no other is given; the exit code.

    `seen` and what is raised: as `start_cells` says.
    """
    code = code or SweepLog(sweep.path).code() or sweep.body["code"]
    plains = {index: cells.plain_config(sweep, index) for index in todo}
    parts = arrays.shapes(plains.items())
    kind = parts[0].cfg.cluster.kind
    check.before_submission(runs, plains.values(), say)
    chain.check(runs, (sweep.body["cells"][index].get("after") for index in todo), kind)
    if kind == "inline":
        return run_here(sweep, runs, todo, code, say)
    start_cells(sweep, runs, parts, code, say, seen)
    return EXIT_DONE


def progress(sweep: Sweep, counts: Counter[str], num_todo: int) -> str:
    """`12 of 48 done, 4 queued, submitting 32`."""
    done, total = counts["done"], len(sweep.run_ids)
    others = [f"{number} {state}" for state, number in counts.items() if state != "done"]
    what = f"submitting {num_todo}" if num_todo else "nothing to submit"
    return f"sweep {sweep.id}: {', '.join([f'{done} of {total} done', *others, what])}, in {short(sweep.path)}"


def cancel(sweep: Sweep, runs: Path, say: Say) -> None:
    """End a sweep for good: what waits does not begin, what runs saves if it can. Raises InputError, SchedulerError."""
    standing = cell_stories(runs, sweep, quick_stories)
    log = SweepLog(sweep.path)
    submitted = [one for one in log.submissions() if one.slurm_job_id]
    submissions = [one for one in submitted if not is_elsewhere(one.cluster)]
    lives = Living(QUEUE.answer(), log) if submissions else None
    jobs = [one.slurm_job_id for one in submissions if lives and lives.has(one)]
    if not jobs and all(story.state in OVER for story in standing):
        raise InputError(f"Every cell of {sweep.id} has ended already; there is nothing to cancel.")
    num_waiting, num_running = _note_cancelled(sweep, runs, dict(enumerate(standing)))
    local.cancel(runs, sweep.id)
    if jobs:
        # Where this fails it is written down what is wanted; asked again, it is tried again.
        ask.call("scancel", *jobs)
        say(f"Slurm jobs {', '.join(jobs)} are cancelled.")
    if elsewhere := {one.cluster for one in submitted} - {one.cluster for one in submissions}:
        say(f"What the cluster {', '.join(sorted(elsewhere))} has of it can only be cancelled there.")
    what = f"; {num_running} run and are told to stop, they save if they can" if num_running else ""
    say(f"sweep {sweep.id}: {num_waiting} cells that waited are cancelled{what}.")


def cancel_cell(sweep: Sweep, runs: Path, index: int) -> str | None:
    """End one cell that has no job of its own or no folder, and give a sentence on how; None for any other cell.

    Where tasks claim cells, the job of one cell is that of others too. Raises InputError, SchedulerError.
    """
    latest = newest(SweepLog(sweep.path).submissions()).get(index)
    rundir = RunDir(runs / sweep.run_ids[index])
    story = cell_stories(runs, sweep, quick_stories)[index]
    # It may have been started by itself since then.
    job = story.slurm_job_id.partition("_")[0]
    is_claimed = latest is not None and latest.mode == CLAIMS and job in ("", latest.slurm_job_id)
    if rundir.run_json.exists() and not is_claimed:
        return None
    if story.state in OVER or not story.entries:
        raise InputError(f"Cell {index} of {sweep.id} is {story.state} ({story.cause}); there is nothing to cancel.")
    _note_cancelled(sweep, runs, {index: story})
    if story.state in ("running", "stopping"):
        step = f"{story.slurm_job_id}.{story.of_kind('begun')[-1]['slurm_step_id']}"
        ask.call("scancel", "--signal=TERM", step)
        return f"run {rundir.id} is told to stop; it saves if it can. Other cells in its job go on."
    local.cancel(runs, rundir.id)
    if not is_claimed and story.slurm_job_id:
        ask.call("scancel", story.slurm_job_id)
    return f"run {rundir.id}, cell {index} of {sweep.id}, is cancelled before it began."


def _note_cancelled(sweep: Sweep, runs: Path, standing: Mapping[int, Story]) -> tuple[int, int]:
    """Write down that cells are cancelled; gives how many of them waited and how many run.

    Said before anybody is told: whoever sees the signal, or would begin meanwhile, must know that no more is wanted.
    """
    open_ = {index: story for index, story in standing.items() if story.state not in OVER}
    waiting = [index for index, story in open_.items() if story.state not in ("running", "stopping")]
    if waiting:
        SweepLog(sweep.path).cancelled(waiting)
    for index, story in open_.items():
        rundir = RunDir(runs / sweep.run_ids[index])
        if story.entries and rundir.run_json.exists():
            endings.record_cancel(rundir, who())
    return len(waiting), len(open_) - len(waiting)


def find_unknown(sweep: Sweep) -> None:
    """Ask Slurm about submissions whose submitter died before it knew. Raises ConflictError, SchedulerError."""
    log = SweepLog(sweep.path)
    unknown = [one for one in log.submissions() if one.is_unknown]
    if not unknown:
        return
    jobs = slurm.in_queue()
    for one in unknown:
        script = str(sweep.path / "submissions" / f"{one.number:04d}.sh")
        if script in jobs:
            log.submitted(one.number, jobs[script])
        elif one.is_being_made():
            raise ConflictError(f"Sweep {sweep.id}", "this submission", f"that of {one.by} since {one.time}")
        else:
            log.refused(one.number, "Slurm does not know it")


def _take_up(sweep: Sweep, runs: Path, todo: Collection[int], code: dict[str, Any]) -> set[int]:
    """Make folders that are there ready for another attempt with this code; gives the cells that have one."""
    there = overview.begun(runs)
    begun = {index for index in todo if sweep.run_ids[index] in there}
    for index in sorted(begun):
        rundir = RunDir(runs / sweep.run_ids[index])
        if not rundir.run_json.exists():
            begun.remove(index)
            continue
        rundir.result_json.unlink(missing_ok=True)
        if rundir.code()["snapshot"] != code["snapshot"]:
            rundir.ledger.append({"kind": "code", "code": code, "time": now()})
    return begun
