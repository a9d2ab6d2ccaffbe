"""What a configuration asks of Slurm, in the words of submitit: #SBATCH lines, set-up lines, options of srun."""

from __future__ import annotations

import shlex
from typing import Any

from omegaconf import DictConfig

from hpctool.launch import limits


def parameters(cfg: DictConfig, environment: dict[str, str]) -> dict[str, Any]:
    """The parameters of submitit's executor, in its own words."""
    cluster, resources = cfg.cluster, cfg.resources
    exports = [f"export {key}={shlex.quote(value)}" for key, value in sorted(environment.items())]
    # srun does not inherit --cpus-per-task from the batch job since Slurm 22.05.
    exports += ["export HPCTOOL_WHERE=slurm", f"export SRUN_CPUS_PER_TASK={resources.cpus_per_task}"]
    exports += [f"export OMP_NUM_THREADS={cfg.num_threads}"]
    found = {
        "name": cfg.name,
        "timeout_min": -(-limits.time_limit_s(cfg.resources.time) // 60),
        "nodes": resources.nodes,
        "tasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem_gb": resources.mem_gb,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "signal_delay_s": cluster.signal_delay_s,
        "setup": [*cluster.setup, *exports],
        # submitit never writes --requeue, and on a cluster with JobRequeue=0 a job without it cannot come back.
        "additional_parameters": {"requeue": True, **dict(cluster.extra)},
        "srun_args": [*cluster.srun_args],
        "stderr_to_stdout": True,
    }
    # wckey=None: submitit's own key is refused where keys are enforced.
    return {"wckey": None} | {key: value for key, value in found.items() if value is not None}
