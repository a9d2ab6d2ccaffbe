"""The types of what every job's configuration holds; the values stand in conf/."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class Cluster:
    """Where a job runs and what the site wants to hear (conf/cluster/)."""

    #: inline (this process), local (background processes here) or slurm (submit and return)
    kind: str = MISSING
    #: how many cells of a sweep, or local runs, may run at once
    max_parallel: int = MISSING
    #: wait until everything submitted has ended, with a live table
    wait: bool = MISSING
    #: seconds before the time limit at which the job is told to save
    signal_delay_s: int = MISSING
    #: seconds between telling a local job to stop and killing it
    kill_wait_s: int = MISSING
    #: how many small cells of a sweep share one Slurm allocation, side by side
    cells_at_once: int = MISSING
    #: how often a run may come back after failures before it is given up; preemptions do not count
    max_failures: int = MISSING
    #: how often the time limit may come before a run is given up
    max_timeouts: int = MISSING
    partition: str | None = MISSING
    account: str | None = MISSING
    qos: str | None = MISSING
    constraint: str | None = MISSING
    exclude: str | None = MISSING
    #: shell lines before the job's command: modules, conda, exports
    setup: list[str] = MISSING
    #: further sbatch options, name → value (`mail-type: END`)
    extra: dict[str, str] = MISSING
    #: further options for srun
    srun_args: list[str] = MISSING


@dataclass
class Resources:
    """How much a job asks for (conf/resources/)."""

    nodes: int = MISSING
    #: processes (ranks) on each node
    tasks_per_node: int = MISSING
    gpus_per_node: int = MISSING
    cpus_per_task: int = MISSING
    #: memory of a node in GB; null leaves it to the site
    mem_gb: float | None = MISSING
    #: the time limit: minutes, `4:00:00` or `2-00:00:00`
    time: str = MISSING


@dataclass
class Paths:
    """Where everything lies (conf/paths/). Relative paths start at the working folder."""

    #: what the others stand on: HPCTOOL_ROOT, else the working folder
    root: str = MISSING
    runs: str = MISSING
    datasets: str = MISSING
    models: str = MISSING
    #: what servers and scoring have answered, by model
    journals: str = MISSING
    #: queues of rows for people to look at, with their answers
    reviews: str = MISSING


@dataclass
class JobConfig:
    """What every job has. A job's own schema inherits it."""

    #: the run's name; letters, digits, `-`, `_` and `.`
    name: str = MISSING
    #: everything random comes from this number
    seed: int = MISSING
    #: `reuse` finds a finished run of the same identity; `rerun` makes a new one because the code has changed
    code: str = MISSING
    #: the compute library's threads in each rank; part of what exactness depends on
    num_threads: int = MISSING
    cluster: Cluster = MISSING
    resources: Resources = MISSING
    paths: Paths = MISSING
