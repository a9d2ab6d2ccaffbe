"""cluster=inline: the job runs in this process, or in the ranks that srun, torchrun or mpirun have started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpctool import rendezvous
from hpctool.errors import EXIT_DONE
from hpctool.launch import signals, task
from hpctool.place import Place
from hpctool.rundir import RunDir
from hpctool.world import World


def run_here(rundir: RunDir, place: Place) -> int:
    """Run one attempt in this process and give its exit code."""
    signals.install()
    return task.run_attempt(rundir, "inline", place, World(place))


def run_as_rank(runs: Path, job: str, place: Place, prepare: Callable[[], str]) -> int:
    """One rank's part: join the others, let rank 0 `prepare` a run folder (empty: nothing to do), and run.

    Collective: all ranks must call it. Raises WorldError, and rank 0's error on every rank.
    """
    signals.install()
    folder = runs / ".meet"
    world = task.join(job, place, folder, rendezvous.meeting_file(folder, place))
    run = world.on_main(prepare)
    if not run:
        world.close()
        return EXIT_DONE
    return task.run_attempt(RunDir(Path(run)), "inline", place, world)
