"""The one way in: plan, find what is there already, make folders, and hand over to inline, local or slurm."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpctool import config, files
from hpctool.errors import EXIT_DONE, InputError, counted
from hpctool.launch import arrays, cells, chain, inline, limits, local, repair, snapshot, sweeps
from hpctool.launch.handover import find_submitted
from hpctool.launch.job import Chain, Link, load_job
from hpctool.launch.plan import Plan, Planned, Request, after_record, make_plan, record
from hpctool.launch.result import current_story
from hpctool.launch.slurm import check
from hpctool.launch.slurm import script as slurm
from hpctool.launch.slurm.script import require_slurm
from hpctool.launch.start import short, start
from hpctool.launch.sweepfile import write_sweep
from hpctool.place import Place, place_from_environment
from hpctool.rundir import RunDir, create_run, now, who

Say = Callable[[str], None]

__all__ = ["Request", "Submission", "dry_run", "show_config", "submit"]


@dataclass
class Submission:
    """What a submission came to."""

    runs: list[str]
    folder: str
    sweep: str = ""
    reused: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    slurm_job_id: str = ""
    slurm_job_ids: list[str] = field(default_factory=list)
    exit_code: int = EXIT_DONE
    #: of a chain: job → its run or sweep
    links: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(self.__dict__)


def show_config(request: Request) -> str:
    """The composed configuration as YAML, interpolations as they stand."""
    composed = config.compose(request.job, request.overrides, request.config_dirs, request.primary)
    return config.to_yaml(composed.cfg)


def dry_run(request: Request, multirun: bool) -> str:
    """The resolved config and the exact batch script; nothing is written."""
    plan = _planned(request, multirun)
    if made := _chain(plan):
        return "".join(map(_typed, made.links))
    first = plan.cells[0]
    parts = [f"# run {first.run_id}", config.to_yaml(first.cfg)]
    if plan.is_sweep:
        number, varied = counted(len(plan.cells), "cell"), ", ".join(plan.varied) or "nothing"
        parts.insert(0, f"# sweep {plan.sweep_id}: {number} over {varied}")
    if plan.parent is not None:
        parts.insert(0, f"# It waits for {plan.parent.kind} {plan.parent.name}; what is made there is looked at then.")
    if plan.cfg.cluster.kind == "slurm":
        folder = plan.runs / first.run_id
        environment = {"PYTHONPATH": f"{plan.runs}/.code/<snapshot>/…", "PYTHONSAFEPATH": "1"}
        if plan.is_sweep:
            submission = cells.sweeps_folder(plan.runs) / plan.sweep_id / "submissions" / "0001.json"
            parts += arrays.preview(
                (cell.plain for cell in plan.cells), plan.cfg.cluster.max_parallel, submission, environment
            )
        else:
            parts.append(slurm.run_script(folder, plan.cfg, environment))
    return "\n".join(parts)


def submit(request: Request, multirun: bool = False, *, say: Say) -> Submission:
    """Plan and start. `say` gets sentences for a person. Raises InputError, SubmitError."""
    place = place_from_environment()
    if place.size > 1:
        return _submit_ranks(request, multirun, place, say)
    plan = _planned(request, multirun)
    if made := _chain(plan):
        return _submit_chain(plan, made, say)
    wanted = limits.num_ranks(plan.cfg)
    if plan.cfg.cluster.kind == "inline" and wanted > 1:
        raise InputError(
            f"resources ask for {wanted} ranks and cluster=inline is this one process. Use cluster=local, "
            f"or start the ranks yourself: torchrun --nproc-per-node {wanted} --no-python hpctool {request.job} …"
        )
    for note in dict.fromkeys(note for cell in plan.cells for note in cell.notes):
        say(note)
    chain.check(plan.runs, (after_record(cell.after) for cell in plan.cells), plan.cfg.cluster.kind)
    check.before_submission(plan.runs, (cell.plain for cell in plan.cells), say)
    code = _snapshot(plan)
    if code.note:
        say(code.note)
    return _submit_sweep(plan, code, say) if plan.is_sweep else _submit_run(plan, code, say)


def _submit_run(plan: Plan, code: snapshot.Code, say: Say) -> Submission:
    cell = plan.cells[0]
    rundir = _existing(plan, cell)
    answer = Submission([cell.run_id], str(plan.runs / cell.run_id))
    if rundir is None and (sweep := sweeps.queued_cells(plan.runs, [cell.run_id]).get(cell.run_id)):
        say(f"run {cell.run_id} is queued already, as a cell of sweep {sweep}. hpctool sweep status {sweep}")
        answer.reused = [cell.run_id]
        return _awaited(plan, answer, say, sweep)
    seen = 0
    if rundir is not None:
        find_submitted(rundir)
        seen = rundir.ledger.last()
        if _reusable(rundir, cell, code, say):
            answer.reused = [cell.run_id]
            return _awaited(plan, answer, say)
    was_there = rundir is not None
    rundir = _going_on(rundir, cell, code, say) if rundir else _create(plan, cell, code)
    repair.note_child(plan.runs, after_record(cell.after), rundir.id)
    answer.submitted = [rundir.id]
    say(f"{plan.request.job}: run {rundir.id} in {short(rundir.path)}")
    answer.exit_code = start(rundir, cell.cfg, say, seen)
    if was_there:
        repair.after_restart(plan.runs, [rundir.id], say)
    return _awaited(plan, answer, say)


def _submit_sweep(plan: Plan, code: snapshot.Code, say: Say) -> Submission:
    kind = plan.cfg.cluster.kind
    if kind == "slurm":
        require_slurm()
    _check_names(plan)
    sweep = write_sweep(plan, code.record())
    todo, counts, seen = sweeps.left_to_do(sweep, plan.runs, say)
    say(sweeps.progress(sweep, counts, len(todo)))
    ids = [cell.run_id for cell in plan.cells]
    answer = Submission(ids, str(sweep.path), sweep.id, submitted=[ids[index] for index in todo])
    mine = set(answer.submitted)
    answer.reused = [run_id for run_id in ids if run_id not in mine]
    if todo and kind == "inline":
        answer.exit_code = sweeps.run_here(sweep, plan.runs, todo, code.record(), say)
    elif todo:
        repair.note_child(plan.runs, after_record(plan.parent), sweep.id)
        # The resources are those that are asked for now; sweep.json has those of the first time.
        parts = arrays.shapes((index, plan.cells[index].plain) for index in todo)
        answer.slurm_job_ids = sweeps.start_cells(sweep, plan.runs, parts, code.record(), say, seen)
        answer.slurm_job_id = ",".join(answer.slurm_job_ids)
    return _awaited(plan, answer, say, sweep.id)


def _chain(plan: Plan) -> Chain | None:
    """The chain that a job is on Slurm, each link with what was told of the cluster; None for one that is a job."""
    job = load_job(plan.request.job)
    if plan.cfg.cluster.kind != "slurm" or not hasattr(job, "chain"):
        return None
    groups = tuple(f"{group}{end}" for group in ("cluster", "resources", "paths", "code") for end in ("=", "."))
    where = [one for one in plan.request.overrides if one.lstrip("+").startswith(groups)]
    made: Chain = job.chain(plan.cfg)
    # What a link says itself counts more: Hydra takes the last of two values.
    return replace(made, links=[replace(link, overrides=[*where, *link.overrides]) for link in made.links])


def _typed(link: Link) -> str:
    """A link as somebody would type it; what it waits for gets its name when that is submitted."""
    words = ["hpctool", link.job, *(["-m"] if link.multirun else []), *link.overrides]
    return shlex.join(words) + (f" after=<{link.after}>" if link.after else "") + "\n"


def _submit_chain(plan: Plan, made: Chain, say: Say) -> Submission:
    """Submit the links, each after the one that it names. Asked again, each finds what is there of it."""
    known: dict[str, Submission] = {}
    for link in made.links:
        before = known.get(link.after)
        after = (before.sweep or before.runs[0]) if before else ""
        request = Request(link.job, link.overrides, plan.request.config_dirs, after=after)
        known[link.job] = submit(request, link.multirun, say=say)
    for line in ("When all of it has completed:", *(f"  {step}" for step in made.next_steps)):
        say(line)
    return Submission(
        [run for one in known.values() for run in one.runs],
        str(plan.runs),
        reused=[run for one in known.values() for run in one.reused],
        submitted=[run for one in known.values() for run in one.submitted],
        slurm_job_ids=[job for one in known.values() for job in one.slurm_job_ids or [one.slurm_job_id] if job],
        exit_code=max(one.exit_code for one in known.values()),
        links={job: one.sweep or one.runs[0] for job, one in known.items()},
    )


def _check_names(plan: Plan) -> None:
    """Raises InputError where a cell's folder is there with another identity."""
    there = set(os.listdir(plan.runs)) if plan.runs.is_dir() else set()
    for cell in plan.cells:
        if cell.run_id in there:
            _existing(plan, cell)


def _submit_ranks(request: Request, multirun: bool, place: Place, say: Say) -> Submission:
    """Ranks that somebody else has started (srun, torchrun, mpirun): they join, rank 0 makes the run folder."""
    if multirun:
        raise InputError(
            "-m submits a sweep and cannot itself be started as several ranks. Start it once, without them."
        )
    plan = _planned(request, multirun)
    cell = plan.cells[0]
    if plan.cfg.cluster.kind != "inline":
        raise InputError(
            f"These are {place.size} ranks started by {place.source}, but cluster={plan.cfg.cluster.kind} would submit "
            "once for each of them. Add cluster=inline, or start hpctool once."
        )

    def prepare() -> str:
        code = _snapshot(plan)
        rundir = _existing(plan, cell)
        if rundir is not None:
            find_submitted(rundir)
        if rundir is not None and _reusable(rundir, cell, code, say):
            return ""
        rundir = _going_on(rundir, cell, code, say) if rundir else _create(plan, cell, code)
        say(f"{request.job}: run {rundir.id} in {short(rundir.path)} on {place.size} ranks")
        return str(rundir.path)

    exit_code = inline.run_as_rank(plan.runs, request.job, place, prepare)
    return Submission([cell.run_id], str(plan.runs / cell.run_id), exit_code=exit_code)


def _existing(plan: Plan, cell: Planned) -> RunDir | None:
    """The run of this identity if its folder is there. Raises InputError where another identity has its name."""
    rundir = RunDir(plan.runs / cell.run_id)
    if not rundir.run_json.exists():
        return None
    if rundir.record()["identity"] != cell.identity:
        raise InputError(
            f"Run {rundir.id} exists with another identity that begins alike. Give this one another name=…"
        )
    return rundir


def _reusable(rundir: RunDir, cell: Planned, code: snapshot.Code, say: Say) -> bool:
    """Whether the run that is there answers what was asked; says what it found."""
    story = current_story(rundir)
    is_lost = bool(local.lost(rundir.path.parent, {rundir.id: story}))
    if story.state != "completed" and sweeps.is_settled(story) and not is_lost:
        say(f"run {rundir.id} is {story.state} already. hpctool runs show {rundir.id}")
        if story.where == "local":
            local.ensure_running(rundir.path.parent)
        return True
    if getattr(load_job(rundir.record()["job"]), "SERVICE", False):
        return False
    if story.state != "completed":
        how = "was said to be queued here and is not" if is_lost else f"ended {story.state}"
        say(f"run {rundir.id} {how} at step {story.step}; it goes on from there.")
        return False
    published = (rundir.result() or {}).get("outputs", {}).get("path")
    if published and not Path(published).exists():
        say(f"run {rundir.id} is completed, but what it made is gone ({published}); it runs again.")
        return False
    changed = rundir.code()["snapshot"] != code.snapshot
    hint = " The code has changed since; code=rerun makes a new run." if changed else ""
    say(f"run {rundir.id} is completed already: {short(rundir.path)}.{hint}")
    return True


def _planned(request: Request, multirun: bool) -> Plan:
    """The plan, in which `code=rerun` makes another run of what is completed already."""
    plan = make_plan(request, multirun)
    for cell in plan.cells:
        first, number = cell.identity, 0
        while cell.plain["code"] == "rerun" and _is_completed(RunDir(plan.runs / cell.run_id)):
            number += 1
            cell.identity = files.sha256_bytes(files.canonical_json([first, number]))
    return plan


def _is_completed(rundir: RunDir) -> bool:
    return (rundir.result() or {}).get("state") == "completed"


def _snapshot(plan: Plan) -> snapshot.Code:
    keys = getattr(load_job(plan.request.job), "FILES", ())
    also = {str(cell.plain[key]) for cell in plan.cells for key in keys if cell.plain[key] is not None}
    return snapshot.take(plan.runs, Path.cwd(), map(Path, sorted(also)))


def _going_on(rundir: RunDir, cell: Planned, code: snapshot.Code, say: Say) -> RunDir:
    """A run that is there and goes on: with the code as it is now, which may have been repaired meanwhile.

    What is allowed now holds for its next attempt; its configuration stays what it was.
    """
    if cell.plain.get("allow_regress"):
        rundir.ledger.append({"kind": "regress", "by": who(), "time": now()})
    if rundir.code()["snapshot"] != code.snapshot:
        rundir.ledger.append({"kind": "code", "code": code.record(), "time": now()})
        say("The code has changed since then; it goes on with the code as it is now.")
    return rundir


def _create(plan: Plan, cell: Planned, code: snapshot.Code) -> RunDir:
    texts = {
        "config.yaml": config.to_yaml(cell.cfg),
        "overrides.txt": "\n".join(cell.overrides) + "\n",
        "code.patch": code.patch,
        "environment.txt": snapshot.installed_packages(),
    }
    return create_run(plan.runs, record(plan, cell, code.record()), texts)


def _awaited(plan: Plan, answer: Submission, say: Say, sweep: str = "") -> Submission:
    """With cluster.wait: block until all runs have ended; the exit code is 1 if one did not complete."""
    if not plan.cfg.cluster.wait or plan.cfg.cluster.kind == "inline":
        return answer
    from hpctool.launch.wait import wait_for

    parts = [cells.find_sweep(plan.runs, sweep)] if sweep else []
    answer.exit_code = wait_for(plan.runs, answer.runs, say, parts)
    return answer
