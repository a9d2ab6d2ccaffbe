"""What runs inside the job: one process is one rank of one attempt of one run.

python -m hpctool.launch.task <run folder>                   a rank, as srun, the local queue or torchrun start it
python -m hpctool.launch.task --array <submission> <index>   the same for a cell of a sweep
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import (
    EXIT_CONTINUE,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    FencedError,
    HpctoolError,
    Stopped,
    WorldError,
)
from hpctool.launch import cells, output, signals
from hpctool.launch.job import load_job
from hpctool.launch.result import own_process, write_ended
from hpctool.launch.slurm import inside
from hpctool.place import Place, place_from_environment
from hpctool.rendezvous import RENDEZVOUS
from hpctool.rundir import RunDir, now
from hpctool.world import MpiWorld, TorchWorld, World

#: A rank that lost its peers waits this long for the one that really failed to write down why.
_PEERS_ERROR_S = 1.0


def main(arguments: list[str]) -> int:
    """The process's exit code: 0 done, 1 failed, 2 wrong input, 75 stopped and to be continued."""
    signals.install()
    if arguments[0] == "--array":
        submission = files.read_json(Path(arguments[1]))
        index = submission["cells"][int(arguments[2])]
        rundir = cells.open_cell(Path(submission["runs"]), submission["sweep"], index)
    else:
        rundir = RunDir(Path(arguments[0]))
    where = "slurm" if "SLURM_JOB_ID" in os.environ and os.environ.get("HPCTOOL_WHERE") == "slurm" else "local"
    return run_attempt(rundir, where, place_from_environment())


def run_attempt(rundir: RunDir, where: str, place: Place, world: World | None = None) -> int:
    """One rank's part of an attempt, from beginning to end; returns its exit code. Collective: all ranks call it.

    A `world` that already stands (inline ranks) is used; otherwise ranks meet at the run folder.
    """
    if place.size > 1:
        os.environ.setdefault(RENDEZVOUS, str(rundir.path / "logs" / meeting_name()))
    if place.rank == 0:
        rundir.attempt = begin(rundir, where, place)
    try:
        world = world or join(rundir, place)
        rundir.attempt = int(world.broadcast(rundir.attempt))
    except WorldError as error:
        print(f"hpctool: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    with output.to_log(rundir.log(world.rank), keep_terminal=where == "inline"), world:
        return _work(rundir, where, world)


def begin(rundir: RunDir, where: str, place: Place) -> int:
    """Begin the next attempt in the ledger and give its number. From now on no older attempt can commit."""
    while True:
        ledger = rundir.ledger
        # Taken before the entries are read: whatever comes later makes `cas` fail.
        last = ledger.last()
        entries = ledger.entries()
        number = 1 + max((e.body["attempt"] for e in entries if e.body["kind"] == "begun"), default=0)
        body = {
            "kind": "begun",
            "attempt": number,
            "where": where,
            "time": now(),
            "world_size": place.size,
            "nodes": [os.environ.get("SLURM_STEP_NODELIST", socket.gethostname())],
            "slurm_job_id": inside.slurm_job_id() if where == "slurm" else "",
            "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "code": rundir.record()["code"],
            **own_process(),
        }
        if ledger.cas(body, after=last):
            return number


def join(rundir: RunDir, place: Place) -> World:
    """The world of the ranks of one job: alone, MPI where MPI started them and the job needs no torch, else torch."""
    if place.size == 1:
        return World(place)
    job = load_job(rundir.record()["job"])
    if place.source in ("openmpi", "mpich") and not getattr(job, "NEEDS_TORCH", False):
        return MpiWorld()
    return TorchWorld(place)


def _work(rundir: RunDir, where: str, world: World) -> int:
    record = rundir.record()
    try:
        outcome = load_job(record["job"]).run(rundir, world)
        # Nobody is done before everybody is.
        world.barrier()
    except Stopped as stop:
        return _stopped(rundir, where, world, stop)
    except FencedError as error:
        print(f"hpctool: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return _stopped(rundir, where, world, Stopped("interrupted", rundir.story().step))
    except Exception as error:
        return _failed(rundir, where, world, error)
    if world.is_main:
        step = int(outcome.get("step", 0))
        write_ended(rundir, "completed", "", outcome)
        _end(rundir, "completed", "", step, EXIT_DONE)
    return EXIT_DONE


def _stopped(rundir: RunDir, where: str, world: World, stop: Stopped) -> int:
    print(f"hpctool: {stop}", file=sys.stderr, flush=True)
    by_hand = where == "inline" and stop.cause == "interrupted"
    code = EXIT_INTERRUPTED if by_hand else EXIT_CONTINUE
    if world.is_main:
        _end(rundir, "cancelled" if by_hand else "requeued", stop.cause, stop.step, code)
    return inside.from_inside(world.is_main) if where == "slurm" else code


def _failed(rundir: RunDir, where: str, world: World, error: Exception) -> int:
    _write_error(rundir, world, error)
    text = f"hpctool: {error}" if isinstance(error, HpctoolError) else traceback.format_exc()
    print(text, file=sys.stderr, flush=True)
    code = error.exit_code if isinstance(error, HpctoolError) else EXIT_FAILED
    if not world.is_main:
        return code
    lost_peers = isinstance(error, WorldError)
    if lost_peers and where == "local":
        return code  # the supervisor saw which rank went first and how, and decides
    cause = first_error(rundir, wait_s=_PEERS_ERROR_S if lost_peers else 0.0) or f"{type(error).__name__}: {error}"
    write_ended(rundir, "failed", cause)
    _end(rundir, "failed", cause, rundir.story().step, code)
    return code


def first_error(rundir: RunDir, wait_s: float = 0.0) -> str:
    """`rank 2: ValueError: …` of the rank that failed first on its own account; empty if none wrote one down."""
    time.sleep(wait_s)
    found: list[dict[str, Any]] = []
    for path in sorted(rundir.error(0).parent.glob("*.json")):
        found.append(files.read_json(path))
    real = [e for e in found if e["type"] != "WorldError"] or found
    if not real:
        return ""
    first = min(real, key=lambda e: str(e["time"]))
    return f"rank {first['rank']}: {first['type']}: {first['message']}".splitlines()[0]


def _write_error(rundir: RunDir, world: World, error: Exception) -> None:
    path = rundir.error(world.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    story = {
        "rank": world.rank,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": traceback.format_exc(),
        "step": rundir.story().step,
        "host": socket.gethostname(),
        "time": now(),
    }
    files.write_json(path, story)


def _end(rundir: RunDir, state: str, cause: str, step: int, code: int) -> None:
    body = {"kind": "ended", "attempt": rundir.attempt, "state": state, "cause": cause, "step": step}
    rundir.ledger.append({**body, "exit_code": code, "time": now()})


def meeting_name() -> str:
    """A file name that the ranks of this start share and no other start has."""
    job, step = os.environ.get("SLURM_JOB_ID", str(os.getppid())), os.environ.get("SLURM_STEP_ID", "0")
    return f"meet-{job}-{step}-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
