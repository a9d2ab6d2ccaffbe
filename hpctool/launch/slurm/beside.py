"""Beside the running ranks of a run: a shell like theirs, and their Python stacks; on their own hosts, through srun.

python -m hpctool.launch.slurm.beside stacks <run folder> <attempt> [rank]     JSON, a line for each rank on this host
python -m hpctool.launch.slurm.beside shell <run folder> <attempt> <rank> [command ...]
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hpctool.errors import InputError, OperationError, SchedulerError, UnknownName
from hpctool.launch.result import current_story, is_alive
from hpctool.launch.slurm import ask
from hpctool.launch.slurm.standing import SUSPENDED
from hpctool.launch.stacks import RankProcess, Reply, Stacks, ask_here, rank_processes, read
from hpctool.rundir import RunDir, Story

_SRUN_S = 60.0
#: What makes a process a rank: a program that is started in the shell must not take itself for one.
_RANK = re.compile(
    r"SLURM_(PROCID|LOCALID|NODEID|GTIDS|NTASKS|NPROCS|STEP|TASK|SRUN|LAUNCH_NODE)\w*|SRUN_\w+|PMI\w*|OMPI_\w+|PRTE_\w+"
    r"|MPI_LOCAL\w+|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|HPCTOOL_(?!ROOT)\w+"
)


def stacks(rundir: RunDir, rank: int | None = None) -> list[Stacks]:
    """The Python stacks of a run's ranks, or of one. Raises InputError if it does not run, OperationError."""
    story, ranks = _running(rundir, rank)
    here, elsewhere = [one for one in ranks if one.is_here], [one for one in ranks if not one.is_here]
    replies = ask_here(here) + (_ask_elsewhere(rundir, story.attempt, elsewhere, rank) if elsewhere else [])
    heard = {reply.rank: reply for reply in replies}
    nothing = {one.rank: Reply(one.rank, problem=f"nothing was heard from {one.host}") for one in ranks}
    told = [read(one, heard.get(one.rank, nothing[one.rank])) for one in ranks]
    num_ranks = int(story.of_kind("begun")[-1].get("world_size") or 1)
    missing = set(range(num_ranks)) - nothing.keys() if rank is None else set()
    why = "it has not begun its work: it starts, or hangs before the ranks have met"
    return sorted([*told, *(Stacks(one, problem=why) for one in missing)], key=lambda one: one.rank)


def _ask_elsewhere(rundir: RunDir, attempt: int, ranks: Sequence[RankProcess], rank: int | None) -> list[Reply]:
    """Ask ranks on other nodes. What they say lies in their files: srun would mix up long lines of several nodes."""
    words = ["stacks", str(rundir.path.resolve()), str(attempt), *([] if rank is None else [str(rank)])]
    srun = _srun(rundir, ranks, sorted({one.node for one in ranks}))
    text = ask.call(*srun, *_program(*words), timeout_s=_SRUN_S, env=ask.outside())
    return [Reply(**json.loads(line)) for line in text.splitlines() if line.startswith("{")]


def shell(rundir: RunDir, rank: int, command: Sequence[str] = ()) -> NoReturn:
    """Become a shell, or a command, beside a running rank. Raises InputError, OperationError."""
    if not command and not sys.stdin.isatty():
        raise InputError(
            "A shell needs a terminal. Name a command to run it beside the rank instead: … shell RUN nvidia-smi"
        )
    story, (one, *_) = _running(rundir, rank)
    words = _program("shell", str(rundir.path.resolve()), str(story.attempt), str(rank), *command)
    if not one.is_here:
        pty = [] if command else ["--pty"]
        words = [*_srun(rundir, [one], [one.node]), *pty, *words]
    os.execvpe(words[0], words, ask.outside())  # noqa: S606 - words, no shell text


def _running(rundir: RunDir, rank: int | None) -> tuple[Story, list[RankProcess]]:
    """The ranks of the attempt that runs now, all or one. Raises InputError where there is none."""
    story = current_story(rundir)
    if story.state not in ("running", "stopping"):
        why = f" ({story.cause})" if story.cause else ""
        raise InputError(f"Run {rundir.id} is {story.state}{why}: none of its ranks runs.")
    if story.cause == SUSPENDED:
        # A step that is started in a suspended job hangs until it is resumed.
        raise OperationError(f"Run {rundir.id} is {SUSPENDED}, as a whole; its ranks can be asked when it goes on.")
    ranks = rank_processes(rundir, story.attempt)
    if not ranks:
        raise OperationError(
            f"No rank of run {rundir.id} has begun its work yet; its log: hpctool runs logs {rundir.id}"
        )
    chosen = [one for one in ranks if rank in (None, one.rank)]
    if not chosen:
        raise UnknownName(f"running rank of {rundir.id}", str(rank), [str(one.rank) for one in ranks])
    return story, chosen


def _srun(rundir: RunDir, ranks: Sequence[RankProcess], nodes: Sequence[str]) -> list[str]:
    """srun that puts one process on each of these nodes, beside what runs there. Raises OperationError."""
    one = ranks[0]
    if not (one.slurm_job and one.node):
        raise OperationError(
            f"Rank {one.rank} of run {rundir.id} runs on {one.host}, which is not this host, and not under Slurm. "
            f"Log in there and type the same."
        )
    if not ask.have("srun"):
        raise SchedulerError(["srun"], "the program is not here")
    where = [f"--jobid={one.slurm_job}", "--overlap", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}"]
    how = [f"--ntasks={len(nodes)}", "--ntasks-per-node=1", "--cpus-per-task=1", "--cpu-bind=none", "--mpi=none"]
    return ["srun", "--quiet", *where, *how]


def _program(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "hpctool.launch.slurm.beside", *words]


# ---------------------------------------------------------------------------------------------- on the ranks' host


def main(arguments: list[str]) -> None:
    """What srun starts on a node."""
    what, run, attempt, *rest = arguments
    ranks = [one for one in rank_processes(RunDir(Path(run)), int(attempt)) if one.is_here]
    if what == "stacks":
        wanted = [one for one in ranks if not rest or str(one.rank) == rest[0]]
        for reply in ask_here(wanted):
            print(json.dumps(vars(reply)), flush=True)
    else:
        rank, *command = rest
        (one,) = (one for one in ranks if str(one.rank) == rank)
        become_shell(one, Path(run).name, command)


def become_shell(one: RankProcess, run_id: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by a shell, or a command, in the environment and folder of a rank."""
    try:
        environ = rank_environment(one)
        os.chdir(f"/proc/{one.pid}/cwd")
    except OSError as error:
        alive = "cannot be looked into" if is_alive(vars(one)) else "is gone"
        sys.exit(f"hpctool: process {one.pid} of rank {one.rank} on {one.host} {alive} ({error.strerror}).")
    # Python ignores it, and what begins here would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if command:
        os.execvpe(command[0], [*command], environ)  # noqa: S606 - what its user typed
    print(f"hpctool: beside rank {one.rank} of {run_id}, process {one.pid} on {one.host}; exit leaves it alone.")
    sys.stdout.flush()
    environ["PS1"] = f"({run_id} rank {one.rank}@{one.host}) \\w $ "
    # No files of the user's: they might load other modules than the job has.
    os.execve("/bin/bash", ["bash", "--noprofile", "--norc", "-i"], environ)  # noqa: S606 - a shell was asked for


def rank_environment(one: RankProcess) -> dict[str, str]:
    """The environment that a rank was started with, less what makes it a rank, on this terminal. Raises OSError."""
    pairs = Path(f"/proc/{one.pid}/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    kept = {key: value for key, value in environ.items() if not _RANK.fullmatch(key)}
    return kept | {key: os.environ[key] for key in ("TERM", "LANG", "LC_ALL", "COLORTERM") if key in os.environ}


if __name__ == "__main__":
    main(sys.argv[1:])
