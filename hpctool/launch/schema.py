"""The types of what every job's configuration holds; the values stand in conf/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class Container:
    """A container that the ranks run in (`cluster.container`); the batch script itself stays outside."""

    #: an image (`/images/torch.sif`, `/images/torch.sqsh`, `docker://…`); null: no container
    image: str | None = MISSING
    #: pyxis (options of srun, where the site has it) or apptainer (`apptainer exec --nv`)
    kind: str = MISSING
    #: further folders to see inside, `/data` or `/host:/inside:ro`; those of `paths` are there by themselves
    mounts: list[str] = MISSING
    #: the Python inside, which must have hpctool's dependencies
    python: str = MISSING
    #: further options, of srun for pyxis (`--container-writable`), of `apptainer exec` for apptainer (`--cleanenv`)
    extra: list[str] = MISSING


@dataclass
class Hang:
    """How long a rank may stand still before its attempt is ended and requeued, by what it does; null: for ever."""

    #: a step: so many seconds, or step_p95 times the 95th percentile of the steps so far, whichever is longer; with
    #: step_p95=null so many seconds
    step_s: float | None = MISSING
    step_p95: float | None = MISSING
    #: from the beginning of the attempt to its first step; the first step, which may compile
    start_min: float | None = MISSING
    first_step_min: float | None = MISSING
    #: one batch of an evaluation, or what comes before and after them; a save
    evaluation_min: float | None = MISSING
    save_min: float | None = MISSING


@dataclass
class Alert:
    """Who is told how a run ended (conf/cluster/); nobody unless somebody is named.

    Of a sweep or a search each cell or worker that fails or stalls is told, and once how the whole has ended.
    """

    #: of completed, failed, cancelled, stalled (a hang that was ended and comes back)
    when: list[str] = MISSING
    #: a program and its arguments; it finds HPCTOOL_ALERT_RUN, _STATE, _CAUSE, _FOLDER and _BY
    command: list[str] = MISSING
    #: an address that takes a POST of JSON with `text`, as chat services do
    webhook: str | None = MISSING
    #: an address of mail, sent by the host's sendmail
    mail: str | None = MISSING


@dataclass
class Cluster:
    """Where a job runs and what the site wants to hear (conf/cluster/)."""

    #: inline (this process), local (background processes here) or slurm (submit and return)
    kind: str = MISSING
    #: how many cells of a sweep, or local runs, may run at once
    max_parallel: int = MISSING
    #: how many small cells of a sweep share one Slurm allocation, side by side
    cells_at_once: int = MISSING
    #: wait until everything submitted has ended, with a live table
    wait: bool = MISSING
    #: seconds before the time limit at which the job is told to save
    signal_delay_s: int = MISSING
    #: seconds between telling a local job to stop and killing it
    kill_wait_s: int = MISSING
    #: how often a run may come back after failures before it is given up; preemptions do not count
    max_failures: int = MISSING
    #: how often the time limit may come before a run is given up
    max_timeouts: int = MISSING
    hang: Hang = MISSING
    alert: Alert = MISSING
    #: before a job begins, each node shows that it writes, computes, reaches the others and has the time of day
    start_check: bool = MISSING
    #: one partition, or several (`a,b`) of which the first that has room takes the job
    partition: str | None = MISSING
    #: the account that pays, where the site keeps accounts
    account: str | None = MISSING
    #: quality of service: a named set of limits and priorities
    qos: str | None = MISSING
    #: features that the nodes must have: `a100`, `ib&ssd`, `a100|h100`
    constraint: str | None = MISSING
    #: nodes not to run on: `n3`, `n[5-9]`
    exclude: str | None = MISSING
    #: nodes that must be among the job's
    nodelist: str | None = MISSING
    reservation: str | None = MISSING
    #: when Slurm writes a mail: `END`, `FAIL`, `REQUEUE`, `TIME_LIMIT` …, joined by commas
    mail_type: str | None = MISSING
    #: to whom; null is the user who submits
    mail_user: str | None = MISSING
    comment: str | None = MISSING
    #: the network interface over which ranks meet: `ib0`, `eth0`; null leaves it to gloo, NCCL and MPI
    interface: str | None = MISSING
    #: the plugin for `srun --mpi=…` (`pmix`), if MPI joins the ranks; null: torch does. What there is: hpctool doctor
    mpi: str | None = MISSING
    container: Container = MISSING
    #: shell lines before the job's command: modules, conda, exports
    setup: list[str] = MISSING
    #: shell lines after it
    teardown: list[str] = MISSING
    #: further sbatch options, name → value (`dependency: singleton`); null for an option without a value
    extra: dict[str, str | None] = MISSING
    #: further options for srun
    srun_args: list[str] = MISSING


@dataclass
class Resources:
    """How much a job asks for (conf/resources/). GPUs in one of four styles, whichever the site likes."""

    nodes: int = MISSING
    #: processes (ranks) on each node
    tasks_per_node: int = MISSING
    #: `2`, or with a type `a100:2`; 0 is none
    gpus_per_node: int | str | None = MISSING
    #: each rank sees its own only
    gpus_per_task: int | str | None = MISSING
    #: in all, over all nodes
    gpus: int | str | None = MISSING
    #: generic resources of each node in Slurm's words, GPUs among them: `gpu:a100:2,nvme:1`
    gres: str | None = MISSING
    cpus_per_task: int | None = MISSING
    #: instead of cpus_per_task
    cpus_per_gpu: int | None = MISSING
    #: memory of a node in GB; null leaves it to the site
    mem_gb: float | None = MISSING
    #: instead of mem_gb
    mem_per_cpu_gb: float | None = MISSING
    #: instead of mem_gb
    mem_per_gpu_gb: float | None = MISSING
    #: the time limit: minutes, `4:00:00` or `2-00:00:00`
    time: str = MISSING
    #: whole nodes, shared with nobody
    exclusive: bool = MISSING
    #: licences that the site counts: `matlab:2`, joined by commas
    licenses: str | None = MISSING


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


@dataclass
class RunConfig(JobConfig):
    """Somebody's own program (conf/run.yaml): a script or a module, and what it is called with."""

    #: a Python script (`train.py`), an executable file (`./simulate`, `run.sh`) or an installed program (`mpi_bench`)
    script: str | None = MISSING
    #: instead of a script: a module that `python -m` runs
    module: str | None = MISSING
    #: arguments as they are; `$HPCTOOL_RUN` in them is the run's folder. `hpctool run … -- --lr 0.1` writes them here
    args: list[str] = MISSING
    #: arguments by name, to sweep over and to compare: params.lr=0.1,0.01
    params: dict[str, Any] = MISSING
    #: how params reach the program: flags (`--lr 0.1`), assignments (`lr=0.1`) or environment (variables)
    params_as: str = MISSING
    #: where the program runs: a folder, or `run` for the run's own artifacts/
    cwd: str = MISSING
    #: run the code as it was at submission; false: as it lies there when the program starts
    snapshot: bool = MISSING
    #: what tells the program to stop; it has as long as the site gives, or cluster.kill_wait_s
    stop_signal: str = MISSING
