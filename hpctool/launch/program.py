"""The job `run`: somebody's own program, which need not know hpctool, as the work of each rank.

A rank is a small process that starts the program, passes on that it is to stop, and tells how it ended. It loads
neither torch nor MPI: both are the program's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from hpctool import config
from hpctool.errors import EXIT_CONTINUE, OperationError, ProgramError, Stopped
from hpctool.launch import output, signals, snapshot
from hpctool.launch.process import Ending, Program
from hpctool.launch.program_check import resolve
from hpctool.rendezvous import RENDEZVOUS, own_address
from hpctool.rundir import RunDir
from hpctool.world import World

__all__ = ["resolve", "run"]

#: A rank whose program fails waits this long for its own signal: the others' programs may have been told first.
_TOLD_TOO_S = 1.0
#: As much of what a failed program said last is kept with the error.
_LAST_LINES = 40
_OWN_WISH = "it asked to be continued"
#: What torchrun leaves for its own workers would lead the program astray: it gets a port of its own.
_TORCHRUN = "TORCHELASTIC_"


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Start the program on every rank and wait for its end. Collective: all ranks must call it.

    Raises Stopped where it was told to stop, or exits with 75; OperationError where it cannot start, ProgramError.
    """
    if any(world.gather(signals.stop_requested())):
        raise Stopped(_first(world.gather(signals.stop_cause())), rundir.story().step)
    cfg = config.load(rundir.config_yaml)
    rundir.artifact("").mkdir(exist_ok=True)
    with _held_port() if world.is_main else contextlib.nullcontext(0) as port:
        master = world.broadcast([own_address(world.place), port])
        environ = environment(rundir, world, cfg, master)
        cwd = rundir.artifact("") if cfg.cwd == "run" else Path(cfg.cwd)
        with Program(command(rundir, cfg, environ), environ, cwd, signal.Signals[cfg.stop_signal]) as program:
            ending, told = _watch(program, cfg)
    stopped = [answer for answer in world.gather(_verdict(rundir, world, cfg, ending, told)) if answer["cause"]]
    metrics = _metrics(rundir)
    step = max(rundir.story().step, int(metrics.pop("step", 0)))
    if stopped:
        raise Stopped(stopped[0]["cause"], step, saved=all(answer["saved"] for answer in stopped))
    return {"step": step, "metrics": metrics}


# ---------------------------------------------------------------------------------------------- what is started


def command(rundir: RunDir, cfg: DictConfig, environ: Mapping[str, str]) -> list[str]:
    """The program and its arguments."""
    if cfg.module is not None:
        # -P: a module is looked for in the snapshot, which stands in PYTHONPATH, and not where it is run.
        head = [sys.executable, *(["-P"] if cfg.snapshot else []), "-m", str(cfg.module)]
    else:
        script = str(cfg.script)
        if cfg.snapshot:
            cwd = rundir.record()["cwd"]
            script = str(snapshot.find(rundir.path.parent, rundir.code(), cwd, Path(script)))
        head = [sys.executable, script] if script.endswith(".py") else [script]
    words = [*cfg.args, *_params(cfg.params, cfg.params_as)]
    return [*head, *(re.sub(r"\$(HPCTOOL_\w+)", lambda m: environ.get(m[1], m[0]), word) for word in words)]


def environment(rundir: RunDir, world: World, cfg: DictConfig, master: tuple[str, int]) -> dict[str, str]:
    """The program's environment: what this process was given, the snapshot's code, ranks as torchrun gives them."""
    place, cwd = world.place, rundir.record()["cwd"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(_TORCHRUN)}
    visible = [device for device in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    # Where each rank sees devices of its own (--gpus-per-task), the fourth rank's is not the fourth that it sees.
    local_rank = place.local_rank % len(visible) if visible else place.local_rank
    environ |= snapshot.environment(rundir)
    # The program's own folder comes first, as it does without us.
    del environ["PYTHONSAFEPATH"]
    if not cfg.snapshot:
        environ["PYTHONPATH"] = os.pathsep.join([*snapshot.inherited_paths(), cwd])
    environ |= {
        "HPCTOOL_RUN": str(rundir.path),
        "HPCTOOL_ATTEMPT": str(rundir.attempt),
        "HPCTOOL_RESUMED": str(int(rundir.attempt > 1)),
        "HPCTOOL_CODE": str(snapshot.project(rundir.path.parent, rundir.code(), cwd)),
        "HPCTOOL_SEED": str(cfg.seed),
        "HPCTOOL_STOP_SIGNAL": cfg.stop_signal,
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": str(master[0]),
        "MASTER_PORT": str(master[1]),
        "OMP_NUM_THREADS": str(cfg.num_threads),
        # A log that is followed, and what a killed program said last.
        "PYTHONUNBUFFERED": "1",
    }
    if place.size > 1:
        environ[RENDEZVOUS] = str(rundir.rendezvous())
    if cfg.params_as == "environment":
        environ |= {key: _text(value) for key, value in _named(cfg.params) if value is not None}
    return environ


def _params(params: Mapping[str, Any], params_as: str) -> Iterator[str]:
    """The named arguments as words of a command line."""
    for key, value in _named(params):
        if params_as == "assignments":
            yield f"{key}={_text(value)}"
        elif params_as == "flags" and value is not None and value is not False:
            yield f"--{key}"
            if value is not True:
                yield from map(_text, value) if isinstance(value, list) else [_text(value)]


def _named(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from config.flatten(config.to_plain(params) if isinstance(params, DictConfig) else dict(params)).items()


def _text(value: Any) -> str:
    """A value as a program reads it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """A port for rank 0's program to listen on, which the kernel gives to nobody else meanwhile.

    It is bound and does not listen: who asks for exactly this port, with SO_REUSEADDR as servers do, gets it.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])


# ---------------------------------------------------------------------------------------------- how it ends


def _watch(program: Program, cfg: DictConfig) -> tuple[Ending, str]:
    """Wait for the program's end, and pass on that it is to stop; how it ended, and why it had been told."""
    stop_signal = signal.Signals[cfg.stop_signal]
    told_s: float | None = None
    killed = False
    while (ending := program.wait(0.2)) is None:
        cause = signals.stop_cause()
        if cause and told_s is None:
            told_s = time.monotonic()
            program.tell(signal.SIGINT if cause == "interrupted" else stop_signal)
        # Slurm kills when its time has come, and says itself when that is; the end of a time limit is known, too.
        alone = ("SLURM_JOB_ID" not in os.environ and cause != "timeout") or signals.is_pause()
        if told_s and alone and not killed and time.monotonic() - told_s > cfg.cluster.kill_wait_s:
            killed = True
            _say(f"It did not end within cluster.kill_wait_s={cfg.cluster.kill_wait_s} and is killed.")
            program.kill()
    if ending.code not in (0, EXIT_CONTINUE):
        deadline = time.monotonic() + _TOLD_TOO_S
        while not signals.stop_requested() and time.monotonic() < deadline:
            time.sleep(0.05)
    return ending, signals.stop_cause()


def _verdict(rundir: RunDir, world: World, cfg: DictConfig, ending: Ending, told: str) -> dict[str, Any]:
    """Why the program is to be continued (empty: it is done), and whether it says that it saved.

    Raises ProgramError if it failed; a program that was killed takes this rank with it.
    """
    name, code, log = str(cfg.module or Path(cfg.script).name), ending.code, rundir.log(world.rank)
    if code == 0 and (not told or ending.ignored):
        return {"cause": ""}
    if told and code == 0:
        _say(f"{name} ended with 0 after it was told to stop; whether it was done cannot be known, so it runs again.")
    if not told and code == EXIT_CONTINUE:
        _check_wishes(rundir, cfg.cluster.max_timeouts)
    if told or code == EXIT_CONTINUE:
        return {"cause": told or _OWN_WISH, "saved": code == EXIT_CONTINUE}
    if code == 128 + signal.SIGKILL:
        # In the words of shells and of mpirun: what it had started was killed.
        code = -signal.SIGKILL
    if code > 0:
        raise ProgramError(name, f"ended with exit code {code}", output.last_lines(log, _LAST_LINES))
    if rundir.story().where == "inline":
        raise ProgramError(name, f"was killed by {signals.name_of(-code)}", output.last_lines(log, _LAST_LINES))
    _say(f"{name} was killed by {signals.name_of(-code)}.")
    return _die_of(-code)


def _check_wishes(rundir: RunDir, limit: int) -> None:
    """A program that asks to be continued for ever gets nowhere. Raises OperationError."""
    count = 0
    for body in rundir.story().of_kind("ended"):
        count = count + 1 if body["cause"] == _OWN_WISH else 0
    if count >= limit:
        raise OperationError(f"It asked to be continued {count + 1} times (cluster.max_timeouts={limit}).")


def _die_of(number: int) -> NoReturn:
    """End this rank as its program ended, so that whoever watches ranks sees what happened."""
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(5.0)
    os._exit(128 + number)


def _metrics(rundir: RunDir) -> dict[str, float]:
    """The numbers that the program has left in metrics.json; what is no number is left out."""
    try:
        found = json.loads((rundir.path / "metrics.json").read_bytes())
        return {str(k): v for k, v in found.items() if type(v) in (int, float) and math.isfinite(v)}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        _say(f"metrics.json is not a JSON object of numbers and is left out ({error}).")
        return {}


def _first(causes: list[str]) -> str:
    return next((cause for cause in causes if cause), "")


def _say(text: str) -> None:
    print(f"hpctool: {text}", file=sys.stderr, flush=True)
