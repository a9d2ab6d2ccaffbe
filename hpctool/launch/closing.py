"""How an attempt closes inside the job: completed, stopped, failed; what is written down, and with which exit code."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from hpctool import config, files
from hpctool.errors import (
    EXIT_CONTINUE,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    HangError,
    HpctoolError,
    NodeError,
    ProgramError,
    Stopped,
    WorldError,
)
from hpctool.launch import alert, endings, signals, stacks
from hpctool.launch.result import first_error, is_alive, is_replaced, rank_errors, write_ended
from hpctool.launch.slurm import inside
from hpctool.rundir import RunDir, now
from hpctool.world import World

#: Rank 0, which lost its peers, waits at most so long for the one that really failed to write down why.
_PEERS_ERROR_S = 1.0
#: Rank 0 leaves last, so that srun sees its exit code and not that of a rank which it has killed.
_OTHERS_LEAVE_S = 1.0


def completed(rundir: RunDir, world: World, outcome: dict[str, Any]) -> int:
    """The job's `run` has returned on all ranks."""
    if world.is_main:
        write_ended(rundir, "completed", "", outcome)
        end(rundir, "completed", "", int(outcome.get("step", 0)), EXIT_DONE)
    return EXIT_DONE


def stopped(rundir: RunDir, where: str, is_main: bool, stop: Stopped) -> int:
    """The job has stopped on request and saved; under Slurm, find out why and what brings it back."""
    print(f"hpctool: {stop}", file=sys.stderr, flush=True)
    if is_replaced(rundir):
        return EXIT_FAILED
    by_hand = where == "inline" and stop.cause == "interrupted"
    if inside.is_job(where) and not by_hand:
        return _stopped_in_slurm(rundir, stop) if is_main else EXIT_DONE
    code = EXIT_INTERRUPTED if by_hand else EXIT_CONTINUE
    if is_main:
        state = "cancelled" if by_hand else "requeued"
        end(rundir, state, _noted(stop.cause, stop), stop.step, code, saved=stop.saved)
    return code


def _stopped_in_slurm(rundir: RunDir, stop: Stopped) -> int:
    """Rank 0's part: write down why, and leave with 75 where the batch script is to ask for the requeue."""
    # A program may ask to be continued although nobody told it to stop.
    found = inside.why(stop.cause) if signals.stop_requested() else inside.Stop(stop.cause, "incomplete")
    if found.cause == "cancelled":
        return _over(rundir, "cancelled", "cancelled in Slurm", stop.step)
    if found.cause == "timeout" and (over := endings.too_many_timeouts(rundir, stop)):
        return _over(rundir, "failed", over, stop.step)
    end(rundir, "requeued", _noted(found.cause, stop), stop.step, EXIT_CONTINUE, saved=stop.saved)
    time.sleep(_OTHERS_LEAVE_S)
    if found.ask == "plain":
        inside.try_requeue()
    return EXIT_CONTINUE


def _noted(cause: str, stop: Stopped) -> str:
    return f"{cause}; {stop.note}" if stop.note else cause


def last_moment(rundir: RunDir, found: inside.Stop) -> None:
    """Rank 0, shortly before the kill, while the job has not saved yet: come back to the newest checkpoint.

    A cancelled job does not come back, but somebody must say that it was cancelled.
    """
    if is_replaced(rundir):
        return
    step = endings.committed_step(rundir.story())
    cause = f"{found.cause}; there was no time to save"
    if found.cause == "cancelled":
        _over(rundir, "cancelled", cause, step)
        return
    end(rundir, "requeued", cause, step, EXIT_CONTINUE)
    print(f"hpctool: {found.cause}, and no time to save; the next attempt goes on from the newest checkpoint.")
    sys.stdout.flush()
    inside.requeue(found.ask)


def leave(rundir: RunDir, where: str, is_main: bool, cause: str) -> None:
    """End this process, whose job has no boundary to stop at: the next attempt does it again from the beginning."""
    exit_now(stopped(rundir, where, is_main, Stopped(cause, endings.committed_step(rundir.story()))))


def exit_now(code: int) -> NoReturn:
    """End this process without Python's own tidying up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def dropped(rundir: RunDir, is_main: bool, why: str) -> int:
    """The run cannot begin, because what it comes after did not complete."""
    if is_main:
        print(f"hpctool: {why}", file=sys.stderr, flush=True)
        _over(rundir, "cancelled", why, 0)
    return EXIT_FAILED


def failed(rundir: RunDir, where: str, world: World, error: Exception) -> int:
    """The job has raised: write down this rank's error, and on rank 0 the end of the run."""
    write_error(rundir, world, error)
    text = f"hpctool: {error}" if isinstance(error, HpctoolError) else traceback.format_exc()
    print(text, file=sys.stderr, flush=True)
    code = error.exit_code if isinstance(error, HpctoolError) else EXIT_FAILED
    if (recorded := recorded_code(rundir)) is not None:
        return recorded  # a hang that another rank has told of, which then left
    lost_peers = isinstance(error, WorldError)
    if lost_peers and inside.is_job(where):
        _wait_for_own_error(rundir, inside.VERDICT_S)
    if not world.is_main:
        return code
    if lost_peers and where == "local":
        return code  # the supervisor saw which rank went first and how, and decides
    if lost_peers:
        _wait_for_own_error(rundir, _PEERS_ERROR_S)
    cause = first_error(rundir, rundir.attempt) or f"{type(error).__name__}: {error}"
    if lost_peers and (gone := _gone(rundir)):
        cause = gone
    return _over(rundir, "failed", cause, rundir.story().step, code)


def unfit(rundir: RunDir, where: str, world: World, error: NodeError) -> int:
    """Nodes have failed the start check: under Slurm the job comes back without them, within its budget."""
    if not inside.is_job(where):
        return failed(rundir, where, world, error)
    print(f"hpctool: {error}", file=sys.stderr, flush=True)
    if not world.is_main:
        return EXIT_DONE
    write_error(rundir, world, error)
    verdict = endings.judge_unfit(rundir, rundir.attempt, error.nodes)
    step = endings.committed_step(rundir.story())
    if verdict.state == "failed":
        return _over(rundir, "failed", verdict.cause, step)
    end(rundir, "requeued", verdict.cause, step, EXIT_CONTINUE, failure=True)
    inside.requeue_without(endings.left_out(rundir))
    return EXIT_CONTINUE


def hung(rundir: RunDir, cause: str, rank: int, error: HangError, doing: str) -> int:
    """The attempt stands still; the one rank that speaks for all writes down why, and gives the exit code.

    `rank` is who is late, `doing` its stacks. It comes back like after a failure, within the same budget.
    """
    _write_error(rundir, rank, error, doing)
    print(f"hpctool: {error}", file=sys.stderr, flush=True)
    story = rundir.story()
    max_failures = int(config.load(rundir.config_yaml).cluster.max_failures)
    verdict = endings.after_failure(story, cause, max_failures)
    code = EXIT_CONTINUE if verdict.state == "requeued" else EXIT_FAILED
    if verdict.state == "failed":
        write_ended(rundir, "failed", verdict.cause)
    end(rundir, verdict.state, verdict.cause, endings.committed_step(story), code, failure=True)
    return code


def recorded_code(rundir: RunDir) -> int | None:
    """The exit code of this attempt if some rank has already written down its end."""
    ended = [body for body in rundir.story().of_kind("ended") if body["attempt"] == rundir.attempt]
    return int(ended[-1].get("exit_code") or EXIT_DONE) if ended else None


def _gone(rundir: RunDir) -> str:
    """Of ranks that have only lost their peers: who went without a word, as far as this host can see."""
    errors = rank_errors(rundir, rundir.attempt)
    if any(error["type"] != "WorldError" for error in errors):
        return ""
    silent = {one.rank: one for one in stacks.rank_processes(rundir, rundir.attempt) if one.is_here}
    for rank in sorted(silent.keys() - {error["rank"] for error in errors}):
        if not is_alive(vars(silent[rank])):
            return f"rank {rank}: its process {silent[rank].pid} ended without a word, as by SIGKILL"
    return ""


def _wait_for_own_error(rundir: RunDir, timeout_s: float) -> None:
    """Until another rank has said what its own error was, or Slurm ends this one.

    Not longer than it takes: mpirun kills this rank one second after it has seen the other one leave.
    """
    deadline_s, pause_s = time.monotonic() + timeout_s, 0.05
    while time.monotonic() < deadline_s:
        if any(error["type"] != "WorldError" for error in rank_errors(rundir, rundir.attempt)):
            return
        time.sleep(pause_s)
        # Under Slurm all ranks may wait for minutes, and each look lists a folder on the shared file system.
        pause_s = min(2 * pause_s, 0.5)


def write_error(rundir: RunDir, world: World, error: Exception) -> None:
    """This rank's error, for whoever asks which one failed first."""
    _write_error(rundir, world.rank, error, error.words if isinstance(error, ProgramError) else traceback.format_exc())


def _write_error(rundir: RunDir, rank: int, error: Exception, where: str) -> None:
    path = rundir.error(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    story = {
        "rank": rank,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": where,
        "step": rundir.story().step,
        "host": socket.gethostname(),
        "time": now(),
    }
    files.write_json(path, story)


def _over(rundir: RunDir, state: str, cause: str, step: int, code: int = EXIT_FAILED) -> int:
    """Write down that the run is over and not completed; gives the exit code."""
    write_ended(rundir, state, cause)
    end(rundir, state, cause, step, code)
    return code


def end(rundir: RunDir, state: str, cause: str, step: int, code: int, **marks: bool) -> None:
    """The ledger's entry: this attempt is over. `marks`: `saved`, or `failure` where it counts as one, if true."""
    body: dict[str, Any] = {"kind": "ended", "attempt": rundir.attempt, "state": state, "cause": cause, "step": step}
    body |= {name: True for name, is_so in marks.items() if is_so}
    rundir.ledger.append({**body, "exit_code": code, "time": now()})
    if not is_replaced(rundir):
        alert.tell(rundir, state, cause)
