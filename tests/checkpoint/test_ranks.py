"""Several ranks save as one: they share the writing, and succeed or fail together."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

from hpctool.checkpoint import Checkpointer
from hpctool.rundir import RunDir
from hpctool.world import World
from tests.checkpoint.test_restore import flip, truncate

Spawn = Callable[..., "subprocess.Popen[str]"]
Begin = Callable[[RunDir], RunDir]

RANK = """
import json, os, resource, signal, sys, warnings
from pathlib import Path
import torch
from hpctool.checkpoint import Checkpointer
from hpctool.rundir import RunDir
from hpctool.world import make_world

torch.set_num_threads(1)
run = RunDir(Path(sys.argv[1]), int(sys.argv[2]))
world = make_world()
saver = Checkpointer(run, world, keep_last=3)
said = {}


def state(step, rank=0):
    return {"model": {f"w{n}": torch.full((50, n + 1), float(step)) for n in range(8)}, "step": step + rank}


def failure(name, step, given, **options):
    try:
        saver.save(given, step, **options)
    except Exception as error:
        said[name] = [type(error).__name__, str(error), getattr(error, "errno", None)]


warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as warned:
    found = saver.restore()
said["found"] = found and [found.step, found.per_rank["rank"], float(found.state["model"]["w3"].sum())]
said["warned"] = [str(one.message) for one in warned]
saver.save(state(1), 1, per_rank={"rank": world.rank, "stream": torch.tensor([world.rank])}, info={"samples": 10})
said["own"] = saver.restore().per_rank["stream"].tolist()
for step in (2, 3):
    saver.async_save(state(step), step)
saver.wait()
failure("unstorable", 4, {"bad": print} if world.rank == 1 else state(4))
failure("differing", 4, {"more": torch.ones(1)} if world.rank == 2 else state(4))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if world.rank == 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
failure("full", 4, state(4))
saver.async_save(state(4), 4)
with warnings.catch_warnings(record=True) as warned:
    saver.wait()
said["unsaved"] = [str(one.message) for one in warned]
world.barrier()
if world.rank == 0:
    run.ledger.append({"kind": "begun", "attempt": run.attempt + 1, "step": 0})
world.barrier()
failure("fenced", 4, state(4))
saver.async_save(state(4), 4)
try:
    saver.wait()
except Exception as error:
    said["zombie"] = type(error).__name__
world.barrier()
print(json.dumps(said))
world.close()
"""


def three_ranks(spawn: Spawn, run: RunDir) -> list[dict[str, object]]:
    started = []
    for rank in range(3):
        place = {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "3"}
        meeting = {"HPCTOOL_RENDEZVOUS": str(run.path / f"meeting-{run.attempt}.json")}
        started.append(spawn(RANK, run.path, run.attempt, env={**os.environ, **place, **meeting}))
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.slow
def test_three_ranks_share_a_checkpoint_and_their_errors(run: RunDir, begin: Begin, spawn: Spawn) -> None:
    said = three_ranks(spawn, run)
    assert [answer["found"] for answer in said] == [None] * 3
    assert [answer["own"] for answer in said] == [[0], [1], [2]]

    for answer in said:
        assert answer["unstorable"][0] == "InputError"  # type: ignore[index]
        assert "The state at 'bad'" in answer["unstorable"][1]  # type: ignore[index]
        assert answer["differing"][0] == "OperationError"  # type: ignore[index]
        assert "Ranks [2] hold other tensors than rank 0" in answer["differing"][1]  # type: ignore[index]
        assert answer["full"][0] == "OSError"  # type: ignore[index]
        assert answer["full"][2] == 27  # type: ignore[index]
        assert answer["fenced"][:2] == ["FencedError", said[0]["fenced"][1]]  # type: ignore[index]
        assert answer["zombie"] == "FencedError"
    assert [len(answer["unsaved"]) for answer in said] == [1, 0, 0]  # type: ignore[arg-type]
    assert [body["step"] for body in run.story().of_kind("unsaved")] == [4]

    folder = run.checkpoint(1)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [f"step-{n:08d}.a1" for n in (1, 2, 3)]
    sizes = [(folder / f"tensors-{rank:05d}.safetensors").stat().st_size for rank in range(3)]
    assert max(sizes) < 1.5 * min(sizes)

    # Each is seen by another rank, whose share of the verification it is; all go around it.
    flip(run.checkpoint(3) / "tensors-00002.safetensors", 0.9)
    truncate(run.checkpoint(2) / "tensors-00001.safetensors")
    with pytest.warns(UserWarning, match="goes on from step 1"):
        found = Checkpointer(RunDir(run.path), World(), 3).restore()
    assert found is not None
    assert (found.step, found.per_rank, found.world_size, found.world_size_changed) == (1, None, 3, True)
    assert all(np.all(found.state["model"][f"w{n}"].numpy() == 1.0) for n in range(8))

    again = three_ranks(spawn, RunDir(run.path, 2))
    assert [answer["found"] for answer in again] == [[1, rank, 200.0] for rank in range(3)]
    assert [len(answer["warned"]) for answer in again] == [1, 0, 0]  # type: ignore[arg-type]
    aside = sorted(path.name for path in run.checkpoints.glob("*.corrupt-*"))
    assert aside == ["step-00000002.a1.corrupt-1", "step-00000003.a1.corrupt-1"]
