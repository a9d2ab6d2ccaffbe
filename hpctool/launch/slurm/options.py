"""What a configuration asks of Slurm, in the words of submitit: #SBATCH lines, set-up lines, options of srun.

Values are quoted where they stand; that none of them can begin a new line was seen to in launch/limits.py.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpctool.launch import gres, limits


def parameters(cfg: DictConfig, environment: dict[str, str]) -> dict[str, Any]:
    """The parameters of submitit's executor, in its own words."""
    cluster, resources = cfg.cluster, cfg.resources
    found = {
        "name": cfg.name,
        "timeout_min": -(-limits.time_limit_s(resources.time) // 60),
        "nodes": resources.nodes,
        "tasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "gres": resources.gres,
        "mem_gb": resources.mem_gb,
        "mem_per_cpu": _memory(resources.mem_per_cpu_gb),
        "mem_per_gpu": _memory(resources.mem_per_gpu_gb),
        "exclusive": resources.exclusive or None,
        **{key: cluster[key] for key in ("partition", "account", "qos", "constraint", "exclude", "nodelist")},
        **{key: cluster[key] for key in ("comment", "mail_type", "mail_user", "signal_delay_s")},
        "setup": [*cluster.setup, *_exports(cfg, environment)],
        "teardown": [*cluster.teardown],
        "additional_parameters": _more(cfg),
        "srun_args": _srun_args(cfg),
        "stderr_to_stdout": True,
    }
    # wckey=None: submitit's own key is refused where keys are enforced.
    return {"wckey": None} | {key: value for key, value in found.items() if value is not None}


def python(cfg: DictConfig) -> str:
    """What starts Python where the ranks run, as shell words: this one, or the one in the container."""
    container = cfg.cluster.container
    if container.image is None:
        return shlex.quote(sys.executable)
    if container.kind == "pyxis":
        return shlex.quote(container.python)
    mounts = [f"--bind={mount}" for mount in _mounts(cfg)]
    return shlex.join(["apptainer", "exec", "--nv", *mounts, *container.extra, container.image, container.python])


def _more(cfg: DictConfig) -> dict[str, Any]:
    """The options of sbatch that submitit does not know, or knows another way."""
    resources = cfg.resources
    # submitit never writes --requeue, and on a cluster with JobRequeue=0 a job without it cannot come back.
    found: dict[str, Any] = {"requeue": True}
    for key in gres.GPU_KEYS:
        # A 0 would ask for nothing in a way that some sites refuse.
        if gres.parse_gpus(resources[key], f"resources.{key}"):
            found[key.replace("_", "-")] = resources[key]
    if "gpus-per-task" in found:
        # Slurm wants a number of tasks here that does not have to be worked out.
        found["ntasks"] = limits.num_ranks(cfg)
    named = {"cpus-per-gpu": resources.cpus_per_gpu, "licenses": resources.licenses}
    found |= {key: value for key, value in named.items() if value is not None}
    if cfg.cluster.reservation is not None:
        found["reservation"] = cfg.cluster.reservation
    return found | {key: True if value is None else value for key, value in cfg.cluster.extra.items()}


def _exports(cfg: DictConfig, environment: dict[str, str]) -> list[str]:
    cluster = cfg.cluster
    found = dict(sorted(environment.items())) | {"HPCTOOL_WHERE": "slurm"}
    if cfg.resources.cpus_per_task is not None:
        # srun does not inherit --cpus-per-task from the batch job since Slurm 22.05.
        found["SRUN_CPUS_PER_TASK"] = str(cfg.resources.cpus_per_task)
    found["OMP_NUM_THREADS"] = str(cfg.num_threads)
    if cluster.interface is not None:
        names = ("HPCTOOL_INTERFACE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMPI_MCA_btl_tcp_if_include")
        found |= dict.fromkeys(names, cluster.interface)
    if cluster.mpi is not None:
        found["HPCTOOL_WORLD"] = "mpi"
    return [f"export {key}={shlex.quote(value)}" for key, value in found.items()]


def _srun_args(cfg: DictConfig) -> list[str]:
    container = cfg.cluster.container
    found = [] if cfg.cluster.mpi is None else [f"--mpi={cfg.cluster.mpi}"]
    if container.image is not None and container.kind == "pyxis":
        found += [f"--container-image={container.image}", f"--container-mounts={','.join(_mounts(cfg))}"]
        found += container.extra
    return [*found, *cfg.cluster.srun_args]


def _mounts(cfg: DictConfig) -> list[str]:
    """The folders that a container sees under their own names, and those that its config adds."""
    folders = {Path(folder).absolute() for key, folder in cfg.paths.items() if key != "root"}
    # What does not exist cannot be mounted; the runs exist when a job starts, code and ledgers lie there.
    kept = {f for f in folders if f.exists()} | {Path(cfg.paths.runs).absolute()}
    outermost = [str(f) for f in sorted(kept) if not any(parent in kept for parent in f.parents)]
    return [*(f"{folder}:{folder}" for folder in outermost), *cfg.cluster.container.mounts]


def _memory(gigabytes: float | None) -> str | None:
    return None if gigabytes is None else f"{round(gigabytes * 1024)}MB"
