"""The strikes: what each kind of fault does to the processes and files of a run. Real signals, real damage."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpctool import files
from hpctool.chaos.faults import Fault
from hpctool.chaos.listener import Held
from hpctool.chaos.stage import Stage
from hpctool.checkpoint import committed
from hpctool.launch import local
from hpctool.launch.result import process_start
from hpctool.rundir import now

#: A file system with less room than this is filled to the last byte; a larger one is left alone.
SMALL_BYTES = 256 << 20
_DAY_S = 86400.0
#: How long a full disk stays full.
_FULL_S, _FULL_STEPS = 5.0, 3
#: How long mpirun may take to pass a signal on to its ranks, measured 0.8 s; a fast program would have ended.
_PASSED_ON_S = 1.0
#: How long an attempt that was thought dead may go on, when it wakes up, before it notices that it is.
_ZOMBIE_S = 120.0


@dataclass
class Struck:
    """What came of a strike."""

    words: str
    #: checkpoints that were damaged, by the names of their folders
    damaged: list[str] = field(default_factory=list)
    #: what the run did wrong, if it did
    problems: list[str] = field(default_factory=list)
    #: whether the run goes on without another attempt
    goes_on: bool = False
    #: who still stands, so that a short run is not over before the next fault is ready
    held: Held | None = None


def strike(stage: Stage, fault: Fault, held: Held, patience_s: float) -> Struck:
    """Do it. `held` stands at the fault's moment; afterwards it has been let go, or is dead."""
    return _STRIKES[fault.kind](stage, fault, held, patience_s)


def whole_checkpoints(stage: Stage) -> list[Path]:
    """The folders of committed checkpoints that are there under their names, oldest first."""
    return [made.path for made in committed(stage.run) if made.path.exists()]


def can_spare_one(stage: Stage) -> bool:
    """Whether the newest checkpoint may be damaged: the one committed before it is there, too, to go back to.

    If that was damaged before, a run rightly refuses to go further back by itself.
    """
    newest = committed(stage.run)[-2:]
    return len(newest) == 2 and all(made.path.exists() for made in newest)


def _late(stage: Stage, fault: Fault, held: Held) -> None:
    """Let go who is held, and wait for as long as the fault says; or do neither."""
    if fault.delay:
        held.release()
        time.sleep(fault.delay * min(5.0, stage.listener.typical_s(fault.moment)))


def _kill(stage: Stage, fault: Fault, held: Held, _patience_s: float) -> Struck:
    if fault.form == "supervisor":
        pid = stage.supervisor()
        stage.send(signal.SIGKILL, [pid])
        stage.wait_for(lambda: not process_start(pid), 60.0, "the supervisor does not die")
        # The ranks go on, up to their next moment: else a short run would be over before the next supervisor comes.
        stage.listener.trap(lambda _stand: True)
        held.release()
        orphans = stage.ranks()
        local.ensure_running(stage.runs)
        stage.wait_for(lambda: not any(map(process_start, orphans)), 60.0, "the next supervisor leaves orphans alone")
        stage.listener.clear()
        return Struck("the supervisor was killed; the next one ended what it had left running")
    _late(stage, fault, held)
    pids = stage.ranks() if fault.form == "all" else [held.stand.pid]
    stage.send(signal.SIGKILL, pids)
    return Struck(f"SIGKILL to {len(pids)} process{'es' if len(pids) > 1 else ''}")


def _term(stage: Stage, fault: Fault, held: Held, _patience_s: float) -> Struck:
    # As Slurm does it: to the processes that it started; what they start themselves is their own.
    started = stage.started()
    if held.stand.pid in started:
        _late(stage, fault, held)
    stage.send(signal.Signals[fault.form], started)
    if held.stand.pid not in started:
        time.sleep(_PASSED_ON_S)
    held.release()
    return Struck(f"{fault.form} to all ranks")


def _hang(stage: Stage, fault: Fault, held: Held, patience_s: float) -> Struck:
    attempt, pid = stage.story().attempt, held.stand.pid
    if fault.form == "stop":
        _late(stage, fault, held)
        stage.send(signal.SIGSTOP, [pid])
        held.release()
    began_s = time.monotonic()
    while time.monotonic() < began_s + patience_s:
        story = stage.story()
        # Written down before the processes are ended, which of a stopped one takes until it is killed.
        told = any(body["attempt"] == attempt for body in story.of_kind("ended"))
        if told or story.attempt > attempt or stage.is_over() or not process_start(pid):
            return Struck(f"noticed by hpctool after {time.monotonic() - began_s:.1f} s")
        time.sleep(0.05)
    stage.kill_ranks()
    return Struck(f"nobody noticed for {patience_s:.0f} s; the rehearsal ended the attempt itself")


def _enospc(stage: Stage, _fault: Fault, held: Held, _patience_s: float) -> Struck:
    # A save beside the training ends a few steps later, one within it before the next step.
    rank, until_step = held.stand.rank, held.stand.step + _FULL_STEPS
    ends = ("committed", "evaluate")
    with _full_disk(stage) as words:
        stage.listener.trap(lambda stand: stand.rank == rank and (stand.moment in ends or stand.step >= until_step))
        held.release()
        until_s, after = time.monotonic() + _FULL_S, None
        while after is None and time.monotonic() < until_s and not stage.is_over() and stage.ranks():
            after = stage.listener.caught(0.05)
    stage.listener.clear()
    return Struck(words, goes_on=True, held=after)


@contextlib.contextmanager
def _full_disk(stage: Stage) -> Iterator[str]:
    """The file system is full within this block: for all where it is small enough to be filled, else for the ranks."""
    folder = stage.run.path
    if shutil.disk_usage(folder).free < SMALL_BYTES:
        ballast = folder / ".chaos-ballast"
        with open(ballast, "wb") as file, contextlib.suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(file.fileno(), b"\0" * size)
        try:
            yield "the file system was filled to the last byte"
        finally:
            ballast.unlink()
        return
    sizes = [path.stat().st_size for made in whole_checkpoints(stage)[-1:] for path in made.glob("*.safetensors")]
    limit = max(sizes, default=2048) // 2
    before = {}
    for pid in stage.ranks():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield f"no file of the ranks may grow beyond {limit} bytes (RLIMIT_FSIZE; a small file system would be filled)"
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def _damage(how: Callable[[Path, random.Random], str]) -> Callable[..., Struck]:
    def strike_(stage: Stage, fault: Fault, _held: Held, _patience_s: float) -> Struck:
        with stage.nobody_runs():
            newest = whole_checkpoints(stage)[-1]
            rng = random.Random(fault.step)
            path = rng.choice(sorted(p for p in newest.iterdir() if p.stat().st_size))
            words = how(path, rng)
        return Struck(f"{words} of {newest.name}/{path.name}", damaged=[newest.name])

    return strike_


def _flip(path: Path, rng: random.Random) -> str:
    position, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))
    return f"bit {bit} of byte {position}"


def _truncate(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    left = rng.randrange(size)
    os.truncate(path, left)
    return f"{size - left} of {size} bytes"


def _stale(stage: Stage, fault: Fault, _held: Held, _patience_s: float) -> Struck:
    with stage.nobody_runs():
        attempt, run = stage.story().attempt, stage.run
        step = max((made.step for made in committed(run)), default=0) + 1
        # A save that never got its name, one that got it and never was committed, and a half written table of files.
        run.checkpoints.mkdir(mode=0o700, exist_ok=True)
        final = run.checkpoint(step, max(attempt, 1))
        left = [run.checkpoints / files.temporary_name(f".tmp-{final.name}")]
        # What bears the number of an attempt that is yet to begin would be no dead one's.
        left += [final] if attempt else []
        for folder in left:
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / "MANIFEST.json").write_text('{"format": 1, "step": ')
            (folder / "tensors-00000.safetensors").write_bytes(os.urandom(64))
        (run.checkpoints / ".trash-step-00000001.a1-chaos").mkdir(exist_ok=True)
        (run.path / "ledger" / ".tmp-chaos").write_text("half an ent")
    named = f"{final.name} without a ledger entry, " if attempt else ""
    return Struck(f"{named}a temporary folder and a half deleted one")


def _zombie(stage: Stage, fault: Fault, held: Held, _patience_s: float) -> Struck:
    """Freeze the attempt, lose its supervisor, begin the next attempt as another node would, and wake the first."""
    _late(stage, fault, held)
    old, zombies = stage.story().attempt, stage.ranks()
    supervisor = stage.supervisor()
    stage.send(signal.SIGKILL, [supervisor])
    stage.send(signal.SIGSTOP, zombies)
    held.release()
    stage.wait_for(lambda: not process_start(supervisor), 60.0, "the supervisor does not die")
    struck = Struck(
        f"{len(zombies)} process{'es' if len(zombies) > 1 else ''} of attempt {old} woke up in the next one"
    )
    stage.listener.forget()
    other = stage.elsewhere()
    try:
        stage.wait_for(lambda: stage.story().attempt > old or other.poll(), _ZOMBIE_S, "no other attempt begins")
        stage.send(signal.SIGCONT, zombies)
        until_s = time.monotonic() + _ZOMBIE_S
        while (alive := [pid for pid in zombies if process_start(pid)]) and time.monotonic() < until_s:
            other.poll()
            time.sleep(0.02)
        if alive:
            struck.problems.append(f"{len(alive)} processes of attempt {old} never noticed that they were replaced")
            stage.send(signal.SIGKILL, alive)
        other.come_home(_ZOMBIE_S)
    finally:
        other.kill()
    return struck


def _clock(stage: Stage, fault: Fault, _held: Held, _patience_s: float) -> Struck:
    with stage.nobody_runs():
        jump_s = _DAY_S if fault.step % 2 else -_DAY_S
        run, then_s = stage.run, time.time() + jump_s
        for path in run.path.rglob("*"):
            with contextlib.suppress(OSError):
                os.utime(path, (then_s, then_s), follow_symlinks=False)
        year = "2031" if jump_s > 0 else "2001"
        run.ledger.append({"kind": "note", "text": "a clock that jumped", "time": year + now()[4:]})
    words = "a day ahead" if jump_s > 0 else "a day behind"
    return Struck(f"all file times {words}, a ledger entry of {year}; the system clock is as it was")


_STRIKES: dict[str, Callable[[Stage, Fault, Held, float], Struck]] = {
    "kill": _kill,
    "term": _term,
    "hang": _hang,
    "enospc": _enospc,
    "flip": _damage(_flip),
    "truncate": _damage(_truncate),
    "stale": _stale,
    "zombie": _zombie,
    "clock": _clock,
}
