"""From what was typed to what would run: composed, typed, resolved, checked and identified. Nothing is written."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.errors import EXIT_INPUT, CorruptError
from hpctool.launch import grid, limits
from hpctool.launch.identity import run_identity, sweep_identity
from hpctool.launch.job import Input, Job, Resolved, Stage, in_stages, load_job, stages
from hpctool.launch.template import NotHere, Template
from hpctool.rundir import SHORT


@dataclass(frozen=True)
class Request:
    """What was typed: a job, its overrides, and where further configuration lies."""

    job: str
    overrides: list[str]
    config_dirs: list[Path] = field(default_factory=list)
    primary: str = ""


@dataclass
class Planned:
    """One run that could be made: everything about it but its folder."""

    #: the resolved configuration; cells of a sweep share what is alike, so it is never changed
    plain: dict[str, Any]
    overrides: list[str]
    choices: dict[str, str]
    inputs: list[Input]
    notes: list[str]
    identity: str

    @functools.cached_property
    def cfg(self) -> DictConfig:
        """The configuration with attributes."""
        return OmegaConf.create(self.plain)

    @property
    def run_id(self) -> str:
        """`<name>-<8 hex>`."""
        return f"{self.plain['name']}-{self.identity[:SHORT]}"


@dataclass
class Plan:
    """A run, or the cells of a sweep."""

    request: Request
    cells: list[Planned]
    varied: list[str]
    is_sweep: bool

    @property
    def cfg(self) -> DictConfig:
        """The configuration that cluster and paths are read from: the first cell's."""
        return self.cells[0].cfg

    @property
    def runs(self) -> Path:
        """Where run folders lie, absolute."""
        return Path(self.cfg.paths.runs).absolute()

    @functools.cached_property
    def sweep_id(self) -> str:
        """`<name>-<8 hex>` of the sweep; empty for a single run."""
        if not self.is_sweep:
            return ""
        return f"{self.cfg.name}-{sweep_identity([cell.identity for cell in self.cells])[:SHORT]}"


def make_plan(request: Request, multirun: bool) -> Plan:
    """Compose, type, resolve and check every cell. Raises InputError and what the job's `resolve` raises."""
    if not multirun:
        grid.refuse_sweep(request.overrides, request.config_dirs)
        return Plan(request, [_planned(request, request.overrides, ())], [], is_sweep=False)
    whole = grid.expand(request.job, request.overrides, request.config_dirs, request.primary)
    return Plan(request, list(_cells(request, whole)), whole.varied, is_sweep=True)


def _cells(request: Request, whole: grid.Grid) -> Iterator[Planned]:
    """The cells of a sweep, each identity once."""
    job = load_job(request.job)
    varied = [key.lstrip("+~") for key in whole.varied]
    templates: dict[int, Template | None] = {}
    seen: set[str] = set()
    for cell in whole.cells():
        try:
            planned = _planned_quickly(request.job, job, cell, varied, templates)
        except Exception:
            # Planned alone it says in the ordinary words what is wrong, or that nothing is.
            planned = _planned(request, cell.overrides, varied)
        if planned.identity not in seen:
            seen.add(planned.identity)
            yield planned


def _planned_quickly(
    name: str, job: Job, cell: grid.Cell, varied: Sequence[str], templates: dict[int, Template | None]
) -> Planned:
    """A cell from its combination's template, which is made with the first of its cells, or cannot be made."""
    key = id(cell.combination)
    if key not in templates:
        templates[key] = None
        templates[key] = Template(cell.combination, job.Config, checked_stages(job))
    template = templates[key]
    if template is None:
        raise NotHere
    plain, answer = template.plan(cell)
    identity = run_identity(name, plain, answer.inputs, varied)
    return Planned(plain, cell.overrides, cell.combination.composed.choices, answer.inputs, answer.notes, identity)


def _planned(request: Request, overrides: list[str], varied: Sequence[str]) -> Planned:
    """One run or cell, composed by itself. Raises InputError and what the job's `resolve` raises."""
    job = load_job(request.job)
    composed = config.compose(request.job, overrides, request.config_dirs, request.primary)
    cfg = config.typed(composed.cfg, job.Config)
    # What is missing or leads nowhere is said before a job stumbles over it.
    config.check_complete(cfg)
    answer = in_stages(cfg, checked_stages(job))
    config.resolved(cfg)
    plain = config.to_plain(cfg)
    identity = run_identity(request.job, plain, answer.inputs, varied)
    return Planned(plain, list(overrides), composed.choices, answer.inputs, answer.notes, identity)


def checked_stages(job: Job) -> list[Stage]:
    """What is done with a job's typed config, in order: the limits, and the parts of its `resolve`."""
    return [limits.check, *map(_of_the_login_node, stages(job))]


def _of_the_login_node(stage: Stage) -> Stage:
    """The same stage; damage that it finds is the input's: nothing has begun."""

    def run(cfg: DictConfig) -> Resolved | None:
        try:
            return stage(cfg)
        except CorruptError as error:
            error.exit_code = EXIT_INPUT
            raise

    return run


def record(plan: Plan, cell: Planned, code: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a run beside its id, time and author."""
    return {
        "identity": cell.identity,
        "job": plan.request.job,
        "name": cell.plain["name"],
        "inputs": [{"kind": one.kind, "name": one.name, "id": one.id} for one in cell.inputs],
        "choices": cell.choices,
        "overrides": cell.overrides,
        "varied": plan.varied,
        "sweep": plan.sweep_id or None,
        "cell": None,
        "code": code,
        "cwd": os.getcwd(),
    }
