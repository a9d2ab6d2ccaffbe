"""The one way in: plan, find what is there already, make folders, and hand over to inline, local or slurm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool import config, files
from hpctool.errors import EXIT_DONE, InputError
from hpctool.launch import cells, inline, limits, local, snapshot
from hpctool.launch.job import load_job
from hpctool.launch.plan import Plan, Planned, Request, make_plan, record
from hpctool.launch.result import current_story
from hpctool.launch.slurm import script as slurm
from hpctool.launch.start import short, start, ticket
from hpctool.place import Place, place_from_environment
from hpctool.rundir import RunDir, Story, create_run, now

Say = Callable[[str], None]

#: States in which a run needs nobody: it is done, or somebody is at it.
UNDERWAY = ("queued", "running", "stopping", "requeued")

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
    exit_code: int = EXIT_DONE

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(self.__dict__)


def show_config(request: Request) -> str:
    """The composed configuration as YAML, interpolations as they stand."""
    composed = config.compose(request.job, request.overrides, request.config_dirs, request.primary)
    return config.to_yaml(composed.cfg)


def dry_run(request: Request, multirun: bool) -> str:
    """The resolved config and the exact batch script; nothing is written."""
    plan = make_plan(request, multirun)
    first = plan.cells[0]
    parts = [f"# run {first.run_id}", config.to_yaml(first.cfg)]
    if plan.is_sweep:
        parts.insert(0, f"# sweep {plan.sweep_id}: {len(plan.cells)} cells over {', '.join(plan.varied) or 'nothing'}")
    if plan.cfg.cluster.kind == "slurm":
        folder = plan.runs / first.run_id
        environment = {"PYTHONPATH": f"{plan.runs}/.code/<snapshot>/…", "PYTHONSAFEPATH": "1"}
        if plan.is_sweep:
            submission = cells.sweeps_folder(plan.runs) / plan.sweep_id / "submissions" / "0001.json"
            parts.append(slurm.array_script(submission, len(plan.cells), plan.cfg, environment))
        else:
            parts.append(slurm.run_script(folder, plan.cfg, environment))
    return "\n".join(parts)


def submit(request: Request, multirun: bool = False, *, say: Say) -> Submission:
    """Plan and start. `say` gets sentences for a person. Raises InputError, SubmitError."""
    place = place_from_environment()
    if place.size > 1:
        return _submit_ranks(request, multirun, place, say)
    plan = make_plan(request, multirun)
    wanted = limits.num_ranks(plan.cfg)
    if plan.cfg.cluster.kind == "inline" and wanted > 1:
        raise InputError(
            f"resources ask for {wanted} ranks and cluster=inline is this one process. Use cluster=local, "
            f"or start the ranks yourself: torchrun --nproc-per-node {wanted} --no-python hpctool {request.job} …"
        )
    for note in dict.fromkeys(note for cell in plan.cells for note in cell.notes):
        say(note)
    code = _snapshot(plan)
    if code.note:
        say(code.note)
    return _submit_sweep(plan, code, say) if plan.is_sweep else _submit_run(plan, code, say)


def _submit_run(plan: Plan, code: snapshot.Code, say: Say) -> Submission:
    cell = plan.cells[0]
    rundir = _existing(plan, cell)
    answer = Submission([cell.run_id], str(plan.runs / cell.run_id))
    if rundir is not None and _reusable(rundir, cell, code, say):
        answer.reused = [cell.run_id]
        return _awaited(plan, answer, say)
    rundir = _with_code(rundir, code, say) if rundir else _create(plan, cell, code)
    answer.submitted = [rundir.id]
    say(f"{plan.request.job}: run {rundir.id} in {short(rundir.path)}")
    answer.exit_code = start(rundir, cell.cfg, say)
    return _awaited(plan, answer, say)


def _submit_sweep(plan: Plan, code: snapshot.Code, say: Say) -> Submission:
    sweep = cells.write_sweep(plan, code.record())
    done = [c.run_id for c in plan.cells if (r := _existing(plan, c)) is not None and _is_settled(r)]
    todo = [index for index, cell in enumerate(plan.cells) if cell.run_id not in set(done)]
    what = f"submitting {len(todo)}" if todo else "nothing to submit"
    say(f"sweep {sweep.id}: {len(done)} of {len(plan.cells)} done or under way, {what}, in {short(sweep.path)}")
    answer = Submission([c.run_id for c in plan.cells], str(sweep.path), sweep.id, reused=done)
    answer.submitted = [plan.cells[i].run_id for i in todo]
    if not todo:
        return _awaited(plan, answer, say)
    kind = plan.cfg.cluster.kind
    if kind == "inline":
        codes = [inline.run_here(cells.open_cell(plan.runs, sweep.id, index), Place()) for index in todo]
        answer.exit_code = next((c for c in codes if c != EXIT_DONE), EXIT_DONE)
    elif kind == "local":
        local.enqueue(plan.runs, [ticket(plan.cells[i].cfg, plan.cells[i].run_id, sweep.id, i) for i in todo])
        say(
            f"The cells run in the background here, {plan.cfg.cluster.max_parallel} at once. "
            f"hpctool sweep status {sweep.id}"
        )
    else:
        answer.slurm_job_id = _submit_array(plan, sweep, todo)
        say(f"Slurm array {answer.slurm_job_id} of {len(todo)} tasks. hpctool sweep status {sweep.id}")
    return _awaited(plan, answer, say)


def _submit_array(plan: Plan, sweep: cells.Sweep, todo: list[int]) -> str:
    """One array over the cells still to do; which they are lies in a file, since array indices begin at 0."""
    folder = sweep.path / "submissions"
    folder.mkdir(exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    body = files.canonical_json({"format": 1, "runs": str(plan.runs), "sweep": sweep.id, "cells": todo, "time": now()})
    number = 1
    while not files.create(folder / f"{number:04d}.json", body):
        number += 1
    environment = snapshot.environment_of(plan.runs, sweep.body["code"], sweep.body["cwd"])
    script = slurm.array_script(folder / f"{number:04d}.json", len(todo), plan.cfg, environment)
    path = folder / f"{number:04d}.sh"
    files.write_atomic(path, script, mode=0o755)
    return slurm.submit_script(path)


def _submit_ranks(request: Request, multirun: bool, place: Place, say: Say) -> Submission:
    """Ranks that somebody else has started (srun, torchrun, mpirun): they join, rank 0 makes the run folder."""
    if multirun:
        raise InputError(
            "-m submits a sweep and cannot itself be started as several ranks. Start it once, without them."
        )
    plan = make_plan(request, multirun)
    cell = plan.cells[0]
    if plan.cfg.cluster.kind != "inline":
        raise InputError(
            f"These are {place.size} ranks started by {place.source}, but cluster={plan.cfg.cluster.kind} would submit "
            "once for each of them. Add cluster=inline, or start hpctool once."
        )

    def prepare() -> str:
        code = _snapshot(plan)
        rundir = _existing(plan, cell)
        if rundir is not None and _reusable(rundir, cell, code, say):
            return ""
        rundir = _with_code(rundir, code, say) if rundir else _create(plan, cell, code)
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


def _is_settled(rundir: RunDir) -> bool:
    story = current_story(rundir)
    return story.state == "completed" or _is_underway(story)


def _is_underway(story: Story) -> bool:
    # A folder without any entry is what a submission left that was killed half-way.
    return story.state in UNDERWAY and bool(story.entries)


def _reusable(rundir: RunDir, cell: Planned, code: snapshot.Code, say: Say) -> bool:
    """Whether the run that is there answers what was asked; says what it found."""
    story = current_story(rundir)
    if _is_underway(story):
        say(f"run {rundir.id} is {story.state} already. hpctool runs show {rundir.id}")
        if story.where == "local":
            local.ensure_running(rundir.path.parent)
        return True
    if getattr(load_job(rundir.record()["job"]), "SERVICE", False):
        return False
    if story.state != "completed":
        say(f"run {rundir.id} ended {story.state} at step {story.step}; it goes on from there.")
        return False
    published = (rundir.result() or {}).get("outputs", {}).get("path")
    if published and not Path(published).exists():
        say(f"run {rundir.id} is completed, but what it made is gone ({published}); it runs again.")
        return False
    changed = rundir.code()["snapshot"] != code.snapshot
    hint = " The code has changed since; code=rerun makes a new run." if changed else ""
    say(f"run {rundir.id} is completed already: {short(rundir.path)}.{hint}")
    return True


def _snapshot(plan: Plan) -> snapshot.Code:
    keys = getattr(load_job(plan.request.job), "FILES", ())
    also = {str(cell.plain[key]) for cell in plan.cells for key in keys if cell.plain[key] is not None}
    return snapshot.take(plan.runs, Path.cwd(), map(Path, sorted(also)))


def _with_code(rundir: RunDir, code: snapshot.Code, say: Say) -> RunDir:
    """A run that is there and goes on: with the code as it is now, which may have been repaired meanwhile."""
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


def _awaited(plan: Plan, answer: Submission, say: Say) -> Submission:
    """With cluster.wait: block until all runs have ended; the exit code is 1 if one did not complete."""
    if not plan.cfg.cluster.wait or plan.cfg.cluster.kind == "inline":
        return answer
    from hpctool.launch.wait import wait_for

    answer.exit_code = wait_for(plan.runs, answer.runs, say, queued_here=plan.cfg.cluster.kind == "local")
    return answer
