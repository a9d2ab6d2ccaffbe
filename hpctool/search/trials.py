"""A trial is a run: from a point of the space to what would run, and to its folder."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.errors import InputError
from hpctool.launch import continued
from hpctool.launch.cells import submitted_texts
from hpctool.launch.identity import run_identity
from hpctool.launch.job import Job, in_stages, load_job
from hpctool.launch.plan import Planned, Request, checked_stages
from hpctool.rundir import RunDir, create_run
from hpctool.search.space import Point, Space, text_of
from hpctool.search.spec import Spec

#: More combinations of group choices are composed for nobody.
MAX_BASES = 200
#: What a trial has from its worker, worked out once, where the search is submitted.
_OF_THE_WORKER = ("cluster", "resources", "paths", "num_threads")


def compose_bases(request: Request, space: Space, fixed: list[str]) -> list[dict[str, Any]]:
    """The job's configuration for each combination of group choices: composed and pinned, not worked out.

    No later change of a config file, of a branch of data or of the environment reaches the trials.
    Raises InputError and what the job's `resolve` raises.
    """
    groups = [axis for axis in space.axes if axis.is_group]
    combinations = list(itertools.product(*(axis.values for axis in groups)))
    if len(combinations) > MAX_BASES:
        raise InputError(f"These choices of groups combine in {len(combinations)} ways; {MAX_BASES} are the most.")
    bases = []
    for values in combinations:
        chosen = {axis.key: value for axis, value in zip(groups, values, strict=True)}
        point = space.at([0.5] * len(space.axes)) | chosen
        texts = [f"{key}={text_of(value)}" for key, value in point.items()]
        composed = config.compose(request.job, [*fixed, *texts], request.config_dirs, request.primary)
        cfg = _pinned(composed.cfg, load_job(request.job), {*point})
        bases.append({"chosen": chosen, "choices": composed.choices, "config": cfg})
    return bases


def _pinned(cfg: DictConfig, job: Job, varied: set[str]) -> dict[str, Any]:
    """The plain configuration in which names (`digits@main`) are what they mean today (`digits@4f2a…`)."""
    typed = config.typed(cfg, job.Config)
    config.check_complete(typed)
    before: dict[str, Any] = config.flatten(OmegaConf.to_container(typed, resolve=False))
    working = copy.deepcopy(typed)
    in_stages(working, checked_stages(job))
    after = config.flatten(OmegaConf.to_container(working, resolve=False))
    plain = copy.deepcopy(typed)
    for key, value in after.items():
        name = before.get(key)
        if not isinstance(name, str) or not isinstance(value, str) or "${" in name or key in varied:
            continue
        if name != value:
            config.set_value(plain, key, value)
    return config.to_plain(plain, [key for key in _OF_THE_WORKER if key in plain])


def plan_trial(spec: Spec, point: Point, more: Mapping[str, Any] | None = None) -> Planned:
    """What a point would run; `more` are further values. Raises InputError and what the job's `resolve` raises."""
    job = load_job(spec.job)
    base = next(one for one in spec.bases if all(point[key] == value for key, value in one["chosen"].items()))
    cfg = OmegaConf.create(copy.deepcopy(base["config"]))
    values = {axis.key: point[axis.key] for axis in spec.space.axes if not axis.is_group} | dict(more or {})
    for key, value in values.items():
        config.set_value(cfg, key, value)
    typed = config.typed(cfg, job.Config)
    config.check_complete(typed)
    answer = in_stages(typed, checked_stages(job))
    plain = config.to_plain(config.resolved(typed))
    varied = [axis.key for axis in spec.space.axes]
    identity = run_identity(spec.job, plain, answer.inputs, varied)
    texts = [*spec.fixed, *(f"{key}={text_of(value)}" for key, value in point.items())]
    return Planned(plain, texts, base["choices"], answer.inputs, answer.notes, identity)


def open_trial(runs: Path, spec: Spec, number: int, planned: Planned, code: dict[str, Any]) -> RunDir:
    """The run folder of a trial, made if it is not there yet. Raises OSError, InputError."""
    continues = continued.record(runs, planned.plain)
    record: dict[str, Any] = {
        **({"continues": continues} if continues else {}),
        "identity": planned.identity,
        "job": spec.job,
        "name": planned.plain["name"],
        "inputs": [{"kind": one.kind, "name": one.name, "id": one.id} for one in planned.inputs],
        "choices": planned.choices,
        "overrides": planned.overrides,
        "varied": [axis.key for axis in spec.space.axes],
        "sweep": spec.id,
        "cell": None,
        "trial": number,
        "after": None,
        "code": code,
        "cwd": spec.cwd,
    }
    texts = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(planned.plain)),
        "overrides.txt": "\n".join(planned.overrides) + "\n",
    }
    return create_run(runs, record, texts | submitted_texts(runs, spec.id, code))


def sample_points(spec: Spec) -> Iterator[Point]:
    """Points that are planned before anything is submitted: the first ones, and the corners of the space."""
    yield from spec.design[:8]
    for u in (0.0, 1 - 1e-9):
        yield spec.space.at([u] * len(spec.space.axes))
