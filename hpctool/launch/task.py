"""What runs inside the job: one process is one rank of one attempt of one run.

python -m hpctool.launch.task <run folder>                   a rank, as srun, the local queue or torchrun start it
python -m hpctool.launch.task --array <submission> <index>   the same for a cell of a sweep
"""

from __future__ import annotations

import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hpctool import config, files, rendezvous
from hpctool.errors import EXIT_FAILED, CancelledError, FencedError, NodeError, OperationError, Stopped, WorldError
from hpctool.launch import cells, closing, gres, moments, output, signals, snapshot, stacks, startcheck, starts
from hpctool.launch.guard import Guard
from hpctool.launch.hardware import hardware
from hpctool.launch.job import load_job
from hpctool.launch.result import own_process
from hpctool.launch.slurm import inside, nostart
from hpctool.launch.sockets import SocketWorld
from hpctool.place import Place, place_from_environment
from hpctool.rundir import RunDir
from hpctool.world import MpiWorld, TorchWorld, World, lost_peers


def main(arguments: list[str]) -> int:
    """The process's exit code: 0 done, 1 failed, 2 wrong input, 75 stopped and to be continued."""
    signals.install()
    moments.reached("start")
    if inside.where() == "slurm" and not nostart.sees(started_for(arguments)):
        return EXIT_FAILED
    return run_attempt(open_run(arguments), inside.where(), place_from_environment())


def started_for(arguments: list[str]) -> Path:
    """The file that has to be there before anything else: the run's record, or the submission of a cell."""
    return Path(arguments[1]) if arguments[0] == "--array" else Path(arguments[0], "run.json")


def open_run(arguments: list[str]) -> RunDir:
    """The run that a command line means; a cell's folder is made if it is not there yet."""
    if arguments[0] == "--array":
        submission = files.read_json(Path(arguments[1]))
        index = submission["cells"][int(arguments[2])]
        return cells.open_cell(Path(submission["runs"]), submission["sweep"], index)
    return RunDir(Path(arguments[0]))


def run_attempt(rundir: RunDir, where: str, place: Place, world: World | None = None) -> int:
    """One rank's part of an attempt, from beginning to end; returns its exit code. Collective: all ranks call it.

    A `world` that already stands (inline ranks) is used; otherwise ranks meet at the run folder.
    """
    meeting = rendezvous.meeting_file(rundir.path / "logs", place)
    if place.rank == 0:
        try:
            rundir.attempt = begin(rundir, where, place)
        except (FencedError, CancelledError) as error:
            print(f"hpctool: {error}", file=sys.stderr, flush=True)
            return EXIT_FAILED
    guard = _guard(rundir, where, place.rank == 0)
    try:
        world = world or join(ranks_of(rundir), place, rundir.path / "logs", meeting)
        rundir.attempt = int(world.broadcast(rundir.attempt))
        # Before anything else is written: a node may not be able to.
        _check_start(rundir, where, world)
    except NodeError as error:
        guard.dismiss()
        with world or World():
            return closing.unfit(rundir, where, world or World(), error)
    except WorldError as error:
        guard.dismiss()
        print(f"hpctool: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    log = output.to_log(rundir.log(world.rank), keep_terminal=where == "inline")
    with log, stacks.answering(rundir, world.rank), world:
        if world.is_main and where != "inline":
            snapshot.say_changes(rundir)
        code = _work(rundir, where, world, guard)
    if world.ends_at_once:
        closing.exit_now(code)
    return code


def begin(rundir: RunDir, where: str, place: Place) -> int:
    """Begin the next attempt in the ledger and give its number. From now on no older attempt can commit.

    Raises FencedError where a later start of this run than the one that this process belongs to has begun.
    """
    start = starts.own(rundir.id, where)
    facts = {
        "where": where,
        "world_size": place.size,
        "nodes": [os.environ.get("SLURM_STEP_NODELIST", socket.gethostname())],
        **start.facts(),
        "code": rundir.code(),
        "hardware": hardware(),
    }
    return rundir.begin({**facts, **own_process()}, partial(starts.refuse, rundir, mine=start))


def ranks_of(rundir: RunDir) -> str:
    """The job that says how a run's ranks are joined: its own, or the one whose runs it works off."""
    record = rundir.record()
    return str(record.get("ranks_of") or record["job"])


def join(job_name: str, place: Place, folder: Path, meeting: Path | None) -> World:
    """The world of the ranks of one job: alone, sockets where it is LIGHT, MPI where MPI started them and the job needs
    no torch, else torch. They meet at a file in `folder`, or at `meeting`. Collective. Raises WorldError.
    """
    job = load_job(job_name)
    if place.size == 1:
        return World(place)
    if getattr(job, "LIGHT", False):
        return SocketWorld(place, meeting or folder / rendezvous.torchrun_name())
    # srun --mpi=… leaves no trace of its own that all versions share; our script says what it asked for.
    by_mpi = place.source in ("openmpi", "mpich") or os.environ.get("HPCTOOL_WORLD") == "mpi"
    if by_mpi and not getattr(job, "NEEDS_TORCH", False):
        return MpiWorld()
    return TorchWorld(place, meeting)


def _work(rundir: RunDir, where: str, world: World, guard: Guard) -> int:
    outcome: dict[str, Any] = {}
    try:
        with guard:
            why_not = _settled(rundir, world)
            if not why_not:
                outcome = load_job(rundir.record()["job"]).run(rundir, world)
                world.part()
    except Stopped as stop:
        code = closing.stopped(rundir, where, world.is_main, stop)
        if inside.is_job(where) and not world.is_main and world.backend != "mpi":
            # While Python tidies up for seconds, rank 0 leaves, and srun kills this one: its exit code would count.
            closing.exit_now(code)
        return code
    except FencedError as error:
        print(f"hpctool: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return closing.stopped(rundir, where, world.is_main, Stopped("interrupted", rundir.story().step))
    except SystemExit as left:
        # Somebody's model or data said so; whatever its code, this rank has not done its work.
        told = f"Something that the job called has left the program: sys.exit({left.code!r})."
        return closing.failed(rundir, where, world, OperationError(told))
    except Exception as error:
        return closing.failed(rundir, where, world, lost_peers(error, world.rank) or error)
    if why_not:
        return closing.dropped(rundir, world.is_main, why_not)
    return closing.completed(rundir, world, outcome)


def _check_start(rundir: RunDir, where: str, world: World) -> None:
    """Unless the config leaves it out, and for one rank at a terminal, which sees for itself. Raises NodeError."""
    cfg = config.load(rundir.config_yaml)
    # Runs of earlier versions have no such key.
    if (cfg.get("cluster") or {}).get("start_check", False) and (world.size > 1 or where != "inline"):
        startcheck.check(rundir, world, gres.count_gpus(gres.of_a_node(cfg.resources)))


def _settled(rundir: RunDir, world: World) -> str:
    """Why a run that comes after another cannot begin; else it is settled what it is made from. Collective."""
    if not rundir.record().get("after"):
        return ""
    from hpctool.launch import chain  # which needs what submits

    return chain.settle(rundir, world)


def _guard(rundir: RunDir, where: str, is_main: bool) -> Guard:
    """Start the thread that acts on a stop where the job cannot; at a terminal Ctrl-C is enough."""
    stops = getattr(load_job(rundir.record()["job"]), "STOPS", False)
    signals.expect(boundaries=stops)
    signals.grace(_grace_s(rundir, where))
    in_slurm = inside.is_job(where)
    alone = stops or (where == "inline" and not in_slurm)
    leave = None if alone else partial(closing.leave, rundir, where, is_main)
    last_moment = partial(closing.last_moment, rundir) if in_slurm and is_main else None
    guard = Guard(leave, last_moment)
    guard.start()
    return guard


def _grace_s(rundir: RunDir, where: str) -> dict[str, float]:
    """How long after each signal the kill comes, as the config says; Slurm is asked besides (guard.py)."""
    cluster = config.load(rundir.config_yaml).get("cluster") or {}
    delay_s, kill_s = float(cluster.get("signal_delay_s") or 0), float(cluster.get("kill_wait_s") or 0)
    if where == "local":
        return {"timeout": delay_s + kill_s, "preempted": kill_s}
    return {"timeout": delay_s} if where == "slurm" else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
