"""The types of a search (conf/search/) and of its workers (conf/search.yaml). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig

SAMPLERS = ("grid", "random", "sobol", "tpe", "gp", "cmaes")
SCHEDULES = ("none", "asha", "pbt")


@dataclass
class Budget:
    """How much a search may cost. All are checked before a worker begins anything; null: no limit."""

    #: exact, whatever the number of workers
    max_trials: int | None = MISSING
    #: over all attempts of all trials, lost work too; CPU-hours where a trial holds no GPU
    gpu_hours: float | None = MISSING
    #: nothing is begun after it: `2026-12-24T18:00` (UTC), or `36h`, `2d` from the submission
    deadline: str | None = MISSING


@dataclass
class Pbt:
    """Population based training: generations of runs, each going on from the checkpoint of a parent."""

    #: how many members train side by side
    population: int = MISSING
    #: steps between two generations, at which the job measures; null: a tenth of the training, or more
    interval: int | None = MISSING
    #: the part of the worst that exploit, and of the best that are exploited, up to 0.5
    quantile: float = MISSING
    #: numbers are multiplied by one of these
    factors: list[float] = MISSING
    #: how often a value is drawn anew instead
    resample: float = MISSING


@dataclass
class Search:
    """What is searched, how, and when it is enough."""

    #: the metric that says which trial is best; null: the job's loop.best_metric
    metric: str | None = MISSING
    #: max or min; null: the job's loop.best_mode
    mode: str | None = MISSING
    #: grid, random, sobol, tpe, gp or cmaes: where the next trial's values come from
    sampler: str = MISSING
    #: none (every trial to its end), asha (the best of each rung go on) or pbt
    schedule: str = MISSING
    #: everything random comes from it and from the number of the trial
    seed: int = MISSING
    #: Slurm tasks, local processes; null: cluster.max_parallel
    workers: int | None = MISSING
    #: one in so many is promoted at each rung
    eta: int = MISSING
    #: steps at which trials are compared; null: by `eta` from the end downwards
    rungs: list[int] | None = MISSING
    #: promote (pause and go on from the checkpoint) or stop (for programs without checkpoints)
    rule: str = MISSING
    #: how many trials begin with points that are spread evenly; null: 10, or the number of workers if that is more
    initial: int | None = MISSING
    #: known good points, first: '[{optim.lr: 1e-3}]'; what a point leaves out is filled in
    try_: list[Any] = MISSING
    #: warm start: an earlier sweep, or words over runs ('job=train data=digits@main')
    from_: str | None = MISSING
    #: also from runs of another data commit
    from_any: bool = MISSING
    #: stop once a trial reaches it
    target: float | None = MISSING
    #: stop after so many finished trials without a better one
    patience: int | None = MISSING
    #: stop if the first so many trials all fail with the same cause
    max_same_failures: int = MISSING
    #: what the checkpoints of paused trials may take together, the worst go first; null: all are kept. A trial that is
    #: promoted without one trains from its beginning
    keep_paused_gb: float | None = MISSING
    budget: Budget = MISSING
    pbt: Pbt = MISSING


@dataclass
class WorkerConfig(JobConfig):
    """conf/search.yaml: one worker of a search."""

    search: Search = MISSING
    #: the sweep that it works for, and which of its workers it is
    sweep: str | None = MISSING
    slot: int = MISSING
