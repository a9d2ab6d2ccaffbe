"""hpctool <job> -m search=asha …: read the space, check what can be checked, write it down, and start the workers."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpctool import config, files
from hpctool.errors import EXIT_DONE, ConfigError, InputError, counted
from hpctool.launch import arrays, grid, parents, repair, snapshot
from hpctool.launch.cells import sweeps_folder
from hpctool.launch.identity import NOT_IDENTITY
from hpctool.launch.job import Input, load_job
from hpctool.launch.plan import Plan, Planned, Request, after_record
from hpctool.launch.slurm import check
from hpctool.launch.slurm.script import require_slurm
from hpctool.launch.start import short
from hpctool.launch.submit import Say, Submission
from hpctool.launch.sweepfile import write_sweep
from hpctool.launch.sweeplog import SweepLog
from hpctool.place import place_from_environment
from hpctool.search import control, propose, rungs, samplers, space, spec, trials, warm
from hpctool.search.schema import SAMPLERS, SCHEDULES, WorkerConfig
from hpctool.search.space import Point, Space
from hpctool.search.spec import Spec
from hpctool.track import hours

#: What is asked of the workers; a trial has what its worker has.
_OF_WORKERS = ("cluster", "resources", "paths", "num_threads", "code")
#: Words of Python's own, under which the configuration keeps `search.try` and `search.from`.
_KEYWORDS = {"search.try": "search.try_", "search.from": "search.from_"}


@dataclass
class Asked:
    """A search that was asked for, planned, with nothing written."""

    request: Request
    spec: Spec
    #: the worker's configuration
    cfg: DictConfig
    #: the first trials, as they would run
    first: list[Planned]
    notes: list[str]
    #: the run or sweep that has to complete first
    after: Input | None = None

    @property
    def runs(self) -> Path:
        return Path(self.cfg.paths.runs).absolute()

    @property
    def folder(self) -> Path:
        return sweeps_folder(self.runs) / self.spec.id


def submit(request: Request, multirun: bool = False, *, say: Say) -> Submission:
    """Plan, write down and start. Raises InputError, SubmitError."""
    if place_from_environment().size > 1:
        raise InputError("A search submits its workers, and cannot itself be started as several ranks.")
    asked = plan(request, multirun)
    for note in asked.notes:
        say(note)
    if asked.cfg.cluster.kind == "slurm":
        require_slurm()
    check.before_submission(asked.runs, [config.to_plain(asked.cfg)], say)
    workers = _workers(asked)
    answer = Submission([], str(asked.folder), asked.spec.id)
    if spec.is_search(asked.folder):
        limits = control.Limits(asked.spec.max_trials, asked.spec.hours, asked.spec.deadline_s)
        control.add_workers(asked.runs, asked.spec.id, asked.spec.num_workers)
        answer.exit_code = control.resume(asked.runs, asked.spec.id, say, limits)
        return _awaited(asked, answer, say)
    keys = getattr(load_job(request.job), "FILES", ())
    scripts = {str(one.plain[key]) for one in asked.first for key in keys if one.plain[key] is not None}
    code = snapshot.take(asked.runs, Path.cwd(), map(Path, sorted(scripts)))
    if code.note:
        say(code.note)
    asked.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_json(spec.path_of(asked.folder), asked.spec.to_json())
    write_sweep(workers, code.record(), ranks_of=request.job)
    repair.note_child(asked.runs, after_record(asked.after), asked.spec.id)
    axes = ", ".join(axis.key for axis in asked.spec.space.axes)
    say(f"search {asked.spec.id} over {axes}: {counted(asked.spec.num_workers, 'worker')}, in {short(asked.folder)}")
    answer.exit_code = control.start(asked.runs, asked.spec.id, range(asked.spec.num_workers), say, 0)
    return _awaited(asked, answer, say)


def dry_run(request: Request, multirun: bool) -> str:
    """The search, the first trial's config and the workers' script; nothing is written."""
    asked = plan(request, multirun)
    body = {k: v for k, v in asked.spec.to_json().items() if k not in ("bases", "design", "format")}
    parts = [f"# search {asked.spec.id}", OmegaConf.to_yaml(OmegaConf.create(body))]
    parts += [f"# the first trial, run {asked.first[0].run_id}", config.to_yaml(asked.first[0].cfg)]
    if asked.cfg.cluster.kind == "slurm":
        path = asked.folder / "submissions" / "0001.json"
        plains = [cell.plain for cell in _workers(asked).cells]
        environment = {"PYTHONPATH": f"{asked.runs}/.code/<snapshot>/…", "PYTHONSAFEPATH": "1"}
        parts += arrays.preview(plains, asked.spec.num_workers, path, environment)
    return "\n".join(parts)


def plan(request: Request, multirun: bool) -> Asked:
    """Compose, read and check everything. Raises InputError and what the job's `resolve` raises."""
    if not multirun:
        raise InputError(f"A search is many runs: hpctool {request.job} -m {' '.join(request.overrides)}")
    of_search, of_workers, of_trials = _split(request.overrides)
    found, fixed = space.read(of_trials, request.config_dirs)
    shared = [one.key_or_group for _, one, _ in grid.parsed(of_workers, request.config_dirs) if one.is_sweep_override()]
    shared += [axis.key for axis in found.axes if axis.key.split(".")[0] in (*NOT_IDENTITY, "name")]
    if shared:
        raise ConfigError(shared[0], "all trials of a search share their workers' resources; vary something else.")
    cfg = _worker_config(request, [*of_search, *of_workers])
    bases = trials.compose_bases(dataclasses.replace(request, overrides=[]), found, [*fixed, *of_workers])
    notes: list[str] = []
    made = _spec(request, cfg, found, bases, [*fixed, *of_workers], notes)
    first = [trials.plan_trial(made, point) for point in trials.sample_points(made)]
    made = dataclasses.replace(made, rungs=rungs.choose(made, cfg.search.rungs, [one.cfg for one in first]))
    if cfg.search.from_:
        runs = Path(cfg.paths.runs).absolute()
        known, note = warm.priors(runs, cfg.search.from_, made, first[0], from_any=cfg.search.from_any)
        made = dataclasses.replace(made, priors=known)
        notes.append(note)
    made = dataclasses.replace(made, id=f"{first[0].plain['name']}-{spec.identity_of(made)[:8]}")
    notes += [note for one in first for note in one.notes]
    asked = Asked(request, made, cfg, first, list(dict.fromkeys(notes)))
    if request.after:
        asked.after = parents.find(asked.runs, request.after).input
        asked.notes.append(f"It begins when {asked.after.name} has completed; what it learns from is pinned now.")
    return asked


def _split(overrides: list[str]) -> tuple[list[str], list[str], list[str]]:
    """What is said of the search, of the workers and of the trials."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        if key.split(".")[0] == "search":
            value = text.partition("=")[2]
            # A question about runs is one text, whatever signs it holds.
            value = space.text_of(value.strip("'\"")) if key == "search.from" else value
            parts[0].append(f"{_KEYWORDS.get(key, key)}={value}")
        else:
            parts[1 if key.split(".")[0] in _OF_WORKERS else 2].append(text)
    return parts


def _worker_config(request: Request, overrides: list[str]) -> DictConfig:
    composed = config.compose("search", overrides, request.config_dirs)
    cfg = config.typed(composed.cfg, WorkerConfig)
    config.check_complete(cfg)
    asked = config.resolved(cfg).search
    for key, value, known in (("sampler", asked.sampler, SAMPLERS), ("schedule", asked.schedule, SCHEDULES)):
        if value not in known:
            raise ConfigError(f"search.{key}", f"there is no '{value}'; there is: {', '.join(known)}.")
    if asked.rule not in ("promote", "stop"):
        raise ConfigError("search.rule", f"it takes promote or stop, and got '{asked.rule}'.")
    numbers = {"eta": asked.eta - 1, "workers": asked.workers, "max_same_failures": asked.max_same_failures}
    numbers |= {"budget.max_trials": asked.budget.max_trials, "budget.gpu_hours": asked.budget.gpu_hours}
    for key, number in (numbers | {"patience": asked.patience, "keep_paused_gb": asked.keep_paused_gb}).items():
        if number is not None and number <= 0:
            least = 2 if key == "eta" else "more than 0"
            raise ConfigError(f"search.{key}", f"it must be {least}, and got {number + (key == 'eta')}.")
    kind = cfg.cluster.kind
    # In one process trials come one after the other.
    cfg.search.workers = 1 if kind == "inline" else asked.workers or cfg.cluster.max_parallel
    cfg.cluster.max_parallel = cfg.search.workers
    return cfg


def _spec(
    request: Request, cfg: DictConfig, found: Space, bases: list[dict[str, Any]], fixed: list[str], notes: list[str]
) -> Spec:
    asked, num_workers = cfg.search, cfg.search.workers
    metric, mode = _metric(asked, bases[0]["config"])
    _check_ends(asked, found)
    size = hours.size_of(config.to_plain(cfg.resources))
    if asked.budget.gpu_hours is not None and not size.num_gpus:
        notes.append("A trial holds no GPU here: search.budget.gpu_hours counts CPU-hours, one for each core.")
    number = max(10, num_workers) if asked.initial is None else max(asked.initial, 0)
    if asked.schedule == "pbt":
        _check_pbt(asked, found, bases)
        number = asked.pbt.population
    made = Spec(
        id="?",
        job=request.job,
        space=found,
        metric=metric,
        mode=mode,
        seed=asked.seed,
        sampler=asked.sampler,
        schedule=asked.schedule,
        num_workers=num_workers,
        sampler_version=samplers.version_of(asked.sampler),
        eta=asked.eta,
        rule=asked.rule,
        max_trials=asked.budget.max_trials,
        hours=asked.budget.gpu_hours,
        unit="GPU" if size.num_gpus else "CPU",
        num_units=size.num_gpus or size.num_cpus,
        deadline_s=_deadline_s(asked.budget.deadline),
        target=asked.target,
        patience=asked.patience,
        max_same_failures=asked.max_same_failures,
        keep_paused_gb=asked.keep_paused_gb,
        bases=bases,
        fixed=fixed,
        cwd=str(Path.cwd()),
        pbt=config.to_plain(asked.pbt) if asked.schedule == "pbt" else {},
    )
    given = [_given(found, dict(one)) for one in config.to_plain(cfg)["search"]["try_"]]
    return dataclasses.replace(made, design=propose.design(made, given, number))


def _check_pbt(asked: Any, found: Space, bases: list[dict[str, Any]]) -> None:
    """A population varies what may change while a run goes on. Raises ConfigError, InputError."""
    if "continue_from" not in bases[0]["config"]:
        raise InputError("search=pbt needs a job that goes on from the checkpoint of another run: train.")
    fixed = [axis.key for axis in found.axes if axis.is_group or axis.key.split(".")[0] in ("model", "data", "loop")]
    if fixed:
        raise ConfigError(fixed[0], "it cannot change while a run goes on, which is what search=pbt does.")
    if asked.pbt.population < 2 or not 0 < asked.pbt.quantile <= 0.5 or not asked.pbt.factors:
        raise ConfigError("search.pbt", "it takes a population of 2 or more, a quantile up to 0.5, and factors.")
    size, quantile = int(asked.pbt.population), float(asked.pbt.quantile)
    if int(size * quantile) < 1:
        least = math.ceil(100 / size) / 100
        raise ConfigError(
            "search.pbt.quantile",
            f"{quantile:g} of a population of {size} is nobody, so none would go on from another's checkpoint. "
            f"Take {least:g} or more, or a larger search.pbt.population.",
        )


def _check_ends(asked: Any, found: Space) -> None:
    """Refuse what would never end. Raises ConfigError, InputError."""
    if asked.schedule == "pbt":
        return
    budget = asked.budget
    if asked.sampler == "grid" and found.count is None:
        endless = next(axis.key for axis in found.axes if axis.count is None)
        raise ConfigError(endless, "an interval has no end of values; a grid needs a list or a range.")
    if asked.sampler == "grid" and (found.count or 0) > space.MAX_POINTS:
        raise InputError(f"This grid has {found.count:,} points; {space.MAX_POINTS:,} are the most.")
    ends = (budget.max_trials, budget.gpu_hours, budget.deadline, asked.target, asked.patience)
    if found.count is None and all(one is None for one in ends):
        raise InputError(
            "This search would never end: give it search.budget.max_trials, search.budget.gpu_hours, "
            "search.budget.deadline, search.target or search.patience."
        )


def _metric(asked: Any, base: dict[str, Any]) -> tuple[str, str]:
    """What is searched for. Raises ConfigError where nobody says it."""
    loop = base.get("loop") or {}
    metric = asked.metric or loop.get("best_metric")
    if not metric:
        raise ConfigError("search.metric", "it has no value. Name the metric that says which trial is best.")
    mode = asked.mode or (loop.get("best_mode") if metric == loop.get("best_metric") else None)
    if mode not in ("max", "min"):
        raise ConfigError("search.mode", f"is more of {metric} better (max) or less (min)? It got {mode or 'nothing'}.")
    return str(metric), str(mode)


def _given(found: Space, given: dict[str, Any]) -> Point:
    """A point of `search.try`, filled in. Raises ConfigError where it lies outside of the space."""
    flat = config.flatten(given)
    for key, value in flat.items():
        axis = next((one for one in found.axes if one.key == key), None)
        if axis is None or not axis.holds(value):
            known = ", ".join(one.key for one in found.axes)
            what = "this search does not vary it" if axis is None else f"{value!r} lies outside of what is searched"
            raise ConfigError(f"search.try: {key}", f"{what}. It varies {known}.")
    return propose.completed(found, flat)


def _deadline_s(text: str | None) -> float | None:
    """`36h`, `2d`, `90m` from now, or a time of UTC. Raises ConfigError."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhd])", text):
        return round(time.time() + float(match[1]) * {"m": 60, "h": 3600, "d": 86_400}[match[2]], 3)
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError("search.budget.deadline", f"'{text}' is no time; write 36h or 2026-12-24T18:00.") from error
    return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()


def _workers(asked: Asked) -> Plan:
    """The workers as the cells of a sweep."""
    cells, identity = [], spec.identity_of(asked.spec)
    for slot in range(asked.spec.num_workers):
        config.set_value(asked.cfg, "sweep", asked.spec.id)
        config.set_value(asked.cfg, "slot", slot)
        plain = config.to_plain(asked.cfg)
        own = spec.worker_identity(identity, slot)
        inputs = [asked.after] if asked.after else []
        cells.append(Planned(plain, [*asked.request.overrides], {}, inputs, [], own, asked.after))
    name = asked.spec.id.rpartition("-")[0]
    request = dataclasses.replace(asked.request, job="search")
    return Plan(request, cells, [], is_sweep=True, parent=asked.after, identity=identity, name=name)


def _awaited(asked: Asked, answer: Submission, say: Say) -> Submission:
    """The Slurm jobs; with cluster.wait, when all workers have ended, the exit code: 1 if one did not complete,
    or if no trial was any good.
    """
    submissions = SweepLog(asked.folder).submissions()
    answer.slurm_job_ids = [one.slurm_job_id for one in submissions if one.slurm_job_id]
    answer.slurm_job_id = ",".join(answer.slurm_job_ids)
    if not asked.cfg.cluster.wait or asked.cfg.cluster.kind == "inline" or answer.exit_code != EXIT_DONE:
        return answer
    from hpctool.launch.cells import find_sweep
    from hpctool.launch.wait import wait_for

    sweep = find_sweep(asked.runs, asked.spec.id)
    code = wait_for(asked.runs, sweep.run_ids, say, [sweep])
    answer.exit_code = code or control.exit_code(asked.runs, asked.spec.id)
    return answer
