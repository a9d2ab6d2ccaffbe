"""From what was typed to what would run: composed, typed, resolved, checked and identified. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpctool import config
from hpctool.errors import EXIT_INPUT, CorruptError
from hpctool.launch import grid, limits
from hpctool.launch.identity import run_identity, sweep_identity
from hpctool.launch.job import Input, load_job
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

    cfg: DictConfig
    overrides: list[str]
    choices: dict[str, str]
    inputs: list[Input]
    notes: list[str]
    identity: str

    @property
    def run_id(self) -> str:
        """`<name>-<8 hex>`."""
        return f"{self.cfg.name}-{self.identity[:SHORT]}"


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

    @property
    def sweep_id(self) -> str:
        """`<name>-<8 hex>` of the sweep; empty for a single run."""
        if not self.is_sweep:
            return ""
        return f"{self.cfg.name}-{sweep_identity([cell.identity for cell in self.cells])[:SHORT]}"


def make_plan(request: Request, multirun: bool) -> Plan:
    """Compose, type, resolve and check every cell. Raises InputError and what the job's `resolve` raises."""
    if not multirun:
        grid.refuse_sweep(request.overrides, request.config_dirs)
        composed = config.compose(request.job, request.overrides, request.config_dirs, request.primary)
        cell = grid.Cell(composed.overrides, composed.cfg, composed.choices)
        return Plan(request, [_planned(request.job, cell, ())], [], is_sweep=False)
    cells, varied = grid.expand(request.job, request.overrides, request.config_dirs, request.primary)
    return Plan(request, [_planned(request.job, cell, varied) for cell in cells], varied, is_sweep=True)


def _planned(job_name: str, cell: grid.Cell, varied: Sequence[str]) -> Planned:
    job = load_job(job_name)
    cfg = config.typed(cell.cfg, job.Config)
    # What is missing or leads nowhere is said before a job stumbles over it.
    config.check_complete(cfg)
    limits.check(cfg)
    try:
        answer = job.resolve(cfg)
    except CorruptError as error:
        # Nothing has begun: it is what was given that is damaged.
        error.exit_code = EXIT_INPUT
        raise
    config.resolved(cfg)
    identity = run_identity(job_name, config.to_plain(cfg), answer.inputs, varied)
    return Planned(cfg, list(cell.overrides), cell.choices, answer.inputs, answer.notes, identity)


def record(plan: Plan, cell: Planned, code: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a run beside its id, time and author."""
    return {
        "identity": cell.identity,
        "job": plan.request.job,
        "name": cell.cfg.name,
        "inputs": [{"kind": one.kind, "name": one.name, "id": one.id} for one in cell.inputs],
        "choices": cell.choices,
        "overrides": cell.overrides,
        "varied": plan.varied,
        "sweep": plan.sweep_id or None,
        "cell": None,
        "code": code,
        "cwd": os.getcwd(),
    }
