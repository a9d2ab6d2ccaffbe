"""What the ranks of test_world.py do: `python tests/ranks.py <scenario> <folder>`, started as any launcher would.

Each rank writes <folder>/<rank>.json: what its scenario returned, or the class and text of the error it met.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.errors import ConfigError, HpctoolError
from hpctool.place import place_from_environment
from hpctool.world import TorchWorld, World, make_world

SUSPENDED_S = 12


def collectives(world: World) -> dict[str, Any]:
    """One of each, with everything that may travel."""
    rank = world.rank
    world.barrier()
    sums = {
        name: world.reduce(np.full((2, 3), rank + 1, name)).tolist()
        for name in ("uint8", "int32", "int64", "float32", "float64")
    }
    kept = world.reduce(np.zeros((2, 0, 3), np.float32))
    scalar = world.reduce(np.array(rank, np.int64), "max")
    return {
        "backend": world.backend,
        "place": [world.rank, world.size, world.local_rank, world.local_size],
        "broadcast": world.broadcast({"from": rank, "text": "é", "none": None} if rank == 1 else None, root=1),
        "gather": world.gather({"rank": rank, "filler": "x" * 100 * rank}),
        "empty": world.gather(""),
        "sums": sums,
        "shapes": [list(kept.shape), kept.dtype.name, list(scalar.shape), scalar.dtype.name],
        "max": int(scalar),
        "min": world.reduce(np.array([rank, -rank]), "min").tolist(),
        "on_main": world.on_main(lambda: ("only", rank)),
    }


def fails_on_main(world: World) -> list[str]:
    """Rank 0's error reaches everybody as what it is, and the world goes on."""

    def wrong_input() -> None:
        raise ConfigError("optim.lr", "there is no such key.")

    def missing_file() -> None:
        Path("/nowhere/at/all").read_text()

    said = []
    for action in (wrong_input, missing_file, lambda: {1, 2}, lambda: 1 / 0):
        try:
            world.on_main(action)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    world.barrier()
    return said


def fails_on_some(world: World) -> list[Any]:
    """All act; an error on one is an error on all, and the world goes on."""

    def all_but(failing: dict[int, Callable[[], Any]]) -> Any:
        return failing.get(world.rank, lambda: {"rank": world.rank})()

    def wrong_input() -> None:
        raise ConfigError("optim.lr", "there is no such key.")

    def missing_file() -> None:
        Path("/nowhere/at/all").read_text()

    said: list[Any] = [world.together(lambda: all_but({}))]
    failures: list[dict[int, Callable[[], Any]]] = [
        {1: wrong_input},
        {0: missing_file, 2: wrong_input},
        {2: lambda: {1, 2}},
    ]
    for failing in failures:
        try:
            world.together(lambda failing=failing: all_but(failing))  # type: ignore[misc]
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    world.barrier()
    return said


def last_is_killed(world: World) -> None:
    """The last rank dies without a word between two collectives."""
    world.barrier()
    if world.rank == world.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.gather("still here?")
    world.barrier()


def one_is_suspended(world: World) -> float:
    """Rank 0 is stopped for longer than ranks wait for each other at the beginning, and all go on."""
    assert isinstance(world, TorchWorld)
    group = world.new_group()
    world.barrier()
    began = time.monotonic()
    if world.rank == 0:
        subprocess.Popen(["/bin/sh", "-c", f"sleep {SUSPENDED_S}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    posted = world.dist.barrier(group, async_op=True)
    world.gather("still here?")
    posted.wait()
    return time.monotonic() - began


def gpus_are_left_together(world: World) -> list[bool]:
    """There is none here: the world is only told that it computes on one."""
    assert isinstance(world, TorchWorld)
    world.device = world.torch.device("cuda")
    world.close()
    alone = [world.ends_at_once, world.dist.is_initialized()]
    world.part()
    world.close()
    return [*alone, world.ends_at_once, world.dist.is_initialized()]


_ALL = (collectives, fails_on_main, fails_on_some, last_is_killed, one_is_suspended, gpus_are_left_together)
SCENARIOS: dict[str, Callable[[World], Any]] = {f.__name__: f for f in _ALL}


def main(name: str, folder: Path, kind: str = "auto", timeout_s: str = "90") -> None:
    """Run one scenario as one rank."""
    rank, began = place_from_environment().rank, time.monotonic()
    try:
        with make_world(kind, timeout_s=float(timeout_s)) as world:
            told = {"result": SCENARIOS[name](world)}
    except HpctoolError as error:
        told = {"error": type(error).__name__, "text": str(error)}
    told["seconds"] = time.monotonic() - began
    (folder / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
