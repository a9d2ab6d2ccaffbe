"""Run your own program, which need not know hpctool: with a run folder, snapshot, sweeps, logs, requeue.

    hpctool run script=train.py -- --lr 0.1 --out '$HPCTOOL_RUN/artifacts'
    hpctool run -m script=train.py params.lr=0.1,0.01 cluster=slurm resources=gpu
    hpctool run script=./simulate.sh cwd=run stop_signal=SIGUSR1

Told to stop, the program gets stop_signal; when it then ends, or whenever it exits with 75, the run is continued.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from hpctool.launch import program
from hpctool.launch.job import Resolved
from hpctool.launch.schema import RunConfig as Config
from hpctool.rundir import RunDir
from hpctool.track.metrics import reported
from hpctool.world import World

__all__ = ["FILES", "LIGHT", "RESOLVES_EARLY", "STOPS", "Config", "resolve", "run"]

#: torch and MPI are the program's, which is told to stop, and has its time for it
LIGHT = STOPS = True
#: it belongs to the snapshot whatever its name is, and is all that `resolve` looks at
FILES = ("script",)
RESOLVES_EARLY = True


def resolve(cfg: DictConfig) -> Resolved:
    """Find the program, and refuse what could not be started."""
    return program.resolve(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Start the program and wait for its end; what it reported is its result. Collective: all ranks must call it."""
    outcome = program.run(rundir, world)
    return outcome | {"metrics": reported(rundir) | outcome["metrics"]}
