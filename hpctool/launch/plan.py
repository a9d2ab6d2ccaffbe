"""From what was typed to what would run: composed, typed, resolved, checked and identified. Nothing is written."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.errors import EXIT_INPUT, CorruptError
from hpctool.launch import continued, grid, limits, parents
from hpctool.launch.identity import run_identity, sweep_identity
from hpctool.launch.job import Input, Job, Resolved, Stage, in_stages, load_job, stages
from hpctool.launch.parents import Parent
from hpctool.launch.template import NotHere, Template
from hpctool.rundir import SHORT

#: Of a run whose parent is still to run, these are worked out at submission; what `resolve` may pin stays as written.
EARLY = ("name", "seed", "code", "num_threads", "cluster", "resources", "paths", "track")


@dataclass(frozen=True)
class Request:
    """What was typed: a job, its overrides, and where further configuration lies."""

    job: str
    overrides: list[str]
    config_dirs: list[Path] = field(default_factory=list)
    primary: str = ""
    #: the run or sweep that has to complete first (`after=`), by its id or the beginning of it
    after: str = ""


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
    #: what it comes after. Then what `resolve` would pin is open until it starts.
    after: Input | None = None

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
    #: the run or sweep that was named by `after=`
    parent: Input | None = None
    #: what the sweep is, if not what its cells are: 64 hex digits; and what it is called, if not as they are
    identity: str = ""
    name: str = ""

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
        identity = self.identity or sweep_identity([cell.identity for cell in self.cells])
        return f"{self.name or self.cfg.name}-{identity[:SHORT]}"


def make_plan(request: Request, multirun: bool) -> Plan:
    """Compose, type, resolve and check every cell. Raises InputError and what the job's `resolve` raises."""
    typed = continued.inherited(request.job, request.overrides, request.config_dirs, request.primary)
    request = replace(request, overrides=typed)
    if not multirun:
        grid.refuse_sweep(request.overrides, request.config_dirs)
    whole = grid.expand(request.job, request.overrides, request.config_dirs, request.primary)
    parent = None
    if request.after:
        parent, whole = _with_parent(request, whole, multirun)
    cells = list(_Planner(request, load_job(request.job), whole, parent).cells())
    return Plan(request, cells, whole.varied, is_sweep=multirun, parent=parent.input if parent else None)


def _with_parent(request: Request, whole: grid.Grid, multirun: bool) -> tuple[Parent, grid.Grid]:
    """What the runs come after, and the grid with the key that names it, where the job has one."""
    first = next(whole.cells()).combination.composed.cfg
    parent = parents.find(Path(first.paths.runs), request.after)
    key = getattr(load_job(request.job), "PARENT", None)
    if key is None or any(axis.name == key for axis in whole.axes):
        return parent, whole
    named = [cell.name for cell in parent.cells] if multirun and parent.cells else [parent.input.name]
    more = [*request.overrides, f"{key}={','.join(named)}"]
    return parent, grid.expand(request.job, more, request.config_dirs, request.primary)


@dataclass
class _Planner:
    """From the points of a grid to what would run."""

    request: Request
    job: Job
    whole: grid.Grid
    parent: Parent | None
    templates: dict[int, Template | None] = field(default_factory=dict)

    @property
    def varied(self) -> list[str]:
        return [key.lstrip("+~") for key in self.whole.varied]

    @property
    def is_open(self) -> bool:
        """Whether what `resolve` looks at is still to be made."""
        return self.parent is not None and not getattr(self.job, "RESOLVES_EARLY", False)

    @property
    def stages(self) -> list[Stage]:
        return [limits.check] if self.is_open else checked_stages(self.job)

    def cells(self) -> Iterator[Planned]:
        """All cells, each identity once."""
        seen: set[str] = set()
        many = self.whole.count > 1
        for index, cell in enumerate(self.whole.cells()):
            try:
                planned = self._quickly(index, cell) if many else self._alone(index, cell)
            except Exception:
                if not many:
                    raise
                # Planned alone it says in the ordinary words what is wrong, or that nothing is.
                planned = self._alone(index, cell)
            if planned.identity not in seen:
                seen.add(planned.identity)
                yield planned

    def _quickly(self, index: int, cell: grid.Cell) -> Planned:
        """From its combination's template, which is made with the first of its cells, or cannot be made."""
        key = id(cell.combination)
        if key not in self.templates:
            self.templates[key] = None
            open_keys = EARLY if self.is_open else None
            self.templates[key] = Template(cell.combination, self.job.Config, self.stages, resolved=open_keys)
        template = self.templates[key]
        if template is None:
            raise NotHere
        plain, answer = template.plan(cell)
        return self._planned(index, cell.overrides, plain, cell.combination.composed.choices, answer)

    def _alone(self, index: int, cell: grid.Cell) -> Planned:
        """Composed by itself. Raises InputError and what the job's `resolve` raises."""
        request, composed = self.request, cell.combination.composed
        if cell.combination.keys:
            composed = config.compose(request.job, cell.overrides, request.config_dirs, request.primary)
        cfg = config.typed(composed.cfg, self.job.Config)
        # What is missing or leads nowhere is said before a job stumbles over it.
        config.check_complete(cfg)
        answer = in_stages(cfg, self.stages)
        plain = config.to_plain(cfg, EARLY) if self.is_open else config.to_plain(config.resolved(cfg))
        return self._planned(index, cell.overrides, plain, composed.choices, answer)

    def _planned(
        self, index: int, overrides: list[str], plain: dict[str, Any], choices: dict[str, str], answer: Resolved
    ) -> Planned:
        inputs, after = answer.inputs, None
        if self.parent is not None:
            key = getattr(self.job, "PARENT", None)
            value: Any = plain
            for part in key.split(".") if key else ():
                value = value[part]
            after = self.parent.of_cell(index, self.whole.count, value if key else None)
            inputs = [*inputs, after]
        identity = run_identity(self.request.job, plain, inputs, self.varied)
        return Planned(plain, overrides, choices, inputs, answer.notes, identity, after)


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
    continues = continued.record(plan.runs, cell.plain)
    return {
        **({"continues": continues} if continues else {}),
        "identity": cell.identity,
        "job": plan.request.job,
        "name": cell.plain["name"],
        "inputs": [{"kind": one.kind, "name": one.name, "id": one.id} for one in cell.inputs],
        "choices": cell.choices,
        "overrides": cell.overrides,
        "varied": plan.varied,
        "sweep": plan.sweep_id or None,
        "cell": None,
        "after": after_record(cell.after),
        "code": code,
        "cwd": os.getcwd(),
    }


def after_record(after: Input | None) -> dict[str, str] | None:
    """What run.json says of what a run comes after."""
    return None if after is None else {"kind": after.kind, "id": after.name}
