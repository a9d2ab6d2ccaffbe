"""Ranks of test_sharded.py: save, or load, a state whose tensors are sharded.

`python sharding_ranks.py`: each line on stdin is {"run", "attempt", "num_ranks", "what": "save" or "load"}, for which
as many ranks are forked; the answer is a line with what each of them said. So torch is imported once, not by each.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from hpctool.checkpoint import Checkpointer, param_digest
from hpctool.rendezvous import RENDEZVOUS
from hpctool.rundir import RunDir
from hpctool.world import World, make_world


class Net(torch.nn.Module):
    """Two layers that share their weight, one whose rows no number of ranks divides, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8, bias=False)
        self.second = torch.nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.last = torch.nn.Linear(8, 5)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x)).relu())  # type: ignore[no-any-return]


def trained(mesh: Any, num_steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model under FSDP2 and AdamW after some steps on the same samples on every rank."""
    torch.manual_seed(0)
    model = Net()
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(num_steps):
        model(torch.randn(4, 8)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def odd(mesh: Any) -> dict[str, Any]:
    """Layouts that FSDP2 does not use: cut along the second dimension, and the same on every rank."""
    torch.manual_seed(2)
    whole = torch.randn(3, 7)
    return {
        "columns": distribute_tensor(whole, mesh, [Shard(1)]),
        "everywhere": distribute_tensor(whole, mesh, [Replicate()]),
        "plain": whole,
    }


def whole(state: Any) -> Any:
    """The state with every DTensor put together."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [whole(value) for value in state]
    return state.full_tensor() if isinstance(state, DTensor) else state


def digest(state: Any) -> str:
    flat: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}/{key}")
        elif isinstance(value, torch.Tensor):
            flat[path] = value

    walk(whole(state), "")
    return param_digest(flat)


def main(world: World, run: RunDir, what: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (world.size,))
    saver = Checkpointer(run, world, params="model")
    if what == "save":
        model, optimizer = trained(mesh, 3)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "odd": odd(mesh), "step": 3}
        saver.async_save(state, 3, per_rank={"rank": world.rank})
        told = {"digest": digest(state)}
        saver.close()
        return told
    found = saver.restore(mesh)
    assert found is not None
    model, optimizer = trained(mesh, 0)
    model.load_state_dict(found.state["model"])
    optimizer.load_state_dict(found.state["optimizer"])
    again = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "odd": found.state["odd"]}
    local = found.state["model"]["last.weight"].to_local()
    return {
        "digest": digest(again),
        "per_rank": found.per_rank,
        "rows": local.shape[0],
        "tied": found.state["model"]["first.weight"] is found.state["model"]["second.weight"],
    }


def start(order: dict[str, Any], rank: int) -> int:
    """Fork one rank, whose answer will lie beside the run; its process id."""
    pid = os.fork()
    if pid:
        return pid
    run, size = Path(order["run"]), str(order["num_ranks"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ[RENDEZVOUS] = str(run / f"meet-{order['attempt']}.json")
    code = 70
    try:
        torch.set_num_threads(1)
        world = make_world("torch")
        told = main(world, RunDir(run, order["attempt"]), order["what"])
        (run / f"said-{rank}").write_text(json.dumps(told))
        world.barrier()
        code = 0
    except Exception:
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        pids = [start(order, rank) for rank in range(order["num_ranks"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert codes == [0] * len(codes), codes
        said = [json.loads((Path(order["run"]) / f"said-{rank}").read_text()) for rank in range(len(pids))]
        print(json.dumps(said), flush=True)
