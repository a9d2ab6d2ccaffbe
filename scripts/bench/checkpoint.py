"""How long a save holds up a training, and how long until it is durable, beside torch.save and torch's own checkpoints.

    python scripts/bench/checkpoint.py [--mb 200 1000] [--ranks 2] [--rounds 5] [--folder DIR]

Ranks hold the same state, as under DDP, over gloo. All ways save it in turn, round by round, so that what else the
machine does meets them alike; the first round, in which memory is touched for the first time, is shown apart.

copy            what must be copied at least: this rank's part of the state into memory that is there already
torch.save      rank 0 saves everything and syncs, the others wait
dcp.save        torch.distributed.checkpoint: ranks share the writing
dcp.async_save  the same in a thread: as it is by default, and with an asynchronous stager. Its staging must end before
                the optimizer may step, so its stall is the call and the rest of the staging
hpctool         Checkpointer.save and async_save: checksums, digests, manifest, ledger and retention included
hpctool + bits  as the training loop saves: a third of the state are parameters, and an eighth of all ranks' is compared
                before the commit (train/agreement.py): the stall has the sum over those that other ranks save
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: waits until a save is durable
Finish = Callable[[], None]
NAMES = (
    "copy",
    "torch.save",
    "dcp.save",
    "dcp.async_save",
    "dcp + stager",
    "hpctool save",
    "hpctool async",
    "hpctool + bits",
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--mb", type=int, nargs="+", default=[200, 1000])
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--folder", type=Path, default=None)
    chosen = arguments.parse_args()
    if "RANK" in os.environ:
        as_rank(chosen.folder, chosen.mb[0], chosen.rounds)
        return
    for mb in chosen.mb:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            started = [start(rank, chosen.ranks, Path(folder), mb, chosen.rounds) for rank in range(chosen.ranks)]
            codes = [process.wait() for process in started]
            if any(codes):
                sys.exit(f"ranks ended with {codes}")
            show(mb, chosen.ranks, json.loads((Path(folder) / "found.json").read_text()))


def start(rank: int, num_ranks: int, folder: Path, mb: int, rounds: int) -> subprocess.Popen[bytes]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    meeting = {"LOCAL_WORLD_SIZE": str(num_ranks), "HPCTOOL_RENDEZVOUS": str(folder / "meet.json")}
    options = ["--mb", str(mb), "--rounds", str(rounds), "--folder", str(folder)]
    environ = {**os.environ, **place, **meeting, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__, *options], env=environ)


def as_rank(folder: Path, mb: int, rounds: int) -> None:
    import torch

    from hpctool.world import make_world

    torch.set_num_threads(1)
    world = make_world("torch")
    torch.manual_seed(0)
    state = {f"layer{n}.weight": torch.randn(mb * 1_000_000 // 4 // 40) for n in range(40)}
    ways = Ways(folder, world, state).by_name
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    for number in range(1, rounds + 1):
        for name in NAMES:
            world.barrier()
            began, used = time.perf_counter(), time.thread_time()
            finish = ways[name](number)
            stall, used = time.perf_counter() - began, time.thread_time() - used
            finish()
            world.barrier()
            # The slowest rank counts: the others wait for it in the next step.
            found[name].append((max(world.gather(stall)), time.perf_counter() - began, max(world.gather(used))))
            if world.is_main:
                for path in folder.glob("dcp-*"):
                    shutil.rmtree(path)
    if world.is_main:
        (folder / "found.json").write_text(json.dumps(found))
    world.barrier()
    os._exit(0)


class Ways:
    """Each way to save: called, it returns when the training may go on, and what it returns waits for the rest."""

    def __init__(self, folder: Path, world: Any, state: dict[str, Any]) -> None:
        import torch
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        from hpctool.checkpoint import Checkpointer
        from hpctool.checkpoint.snapshot import split
        from hpctool.rundir import RunDir
        from hpctool.train.agreement import Agreement

        self.folder, self.world, self.state, self.torch, self.dcp = folder, world, state, torch, dcp
        share = split({name: tensor.nbytes for name, tensor in state.items()}, world.size)[world.rank]
        self.room = {name: torch.zeros_like(state[name]) for name in share}
        self.group = dist.new_group(backend="gloo")
        self.stager = DefaultStager(StagingOptions(False, False, True, False))
        run = folder / "run"
        if world.is_main:
            run.mkdir(mode=0o700)
            RunDir(run).begin({})
        world.barrier()
        self.saver = Checkpointer(RunDir(run, 1), world, params="model")
        learnt = torch.nn.ParameterList(list(state.values())[: len(state) // 3])
        rest = dict(list(state.items())[len(state) // 3 :])
        self.own_state = {"model": learnt.state_dict(), "optimizer": rest}
        # As behind the first step of a training; the memory for `copy` was touched above.
        self.saver.prepare(self.own_state)
        self.saver.wait()
        self.agreement = Agreement(world, learnt, 100)
        ways = (self.copy, self.torch_save, self.dcp_save, self.dcp_async, self.dcp_staged, self.own, self.own_async)
        self.by_name = dict(zip(NAMES, (*ways, self.own_with_bits), strict=True))

    def copy(self, number: int) -> Finish:
        for name, room in self.room.items():
            room.copy_(self.state[name])
        return lambda: None

    def torch_save(self, number: int) -> Finish:
        if self.world.is_main:
            with open(self.folder / "torch.pt", "wb") as file:
                self.torch.save(self.state, file)
                file.flush()
                os.fsync(file.fileno())
        self.world.barrier()
        return lambda: None

    def dcp_save(self, number: int) -> Finish:
        self.dcp.save(self.state, checkpoint_id=self.folder / f"dcp-{number}", process_group=self.group)
        return lambda: None

    def dcp_async(self, number: int) -> Finish:
        path = self.folder / f"dcp-a{number}"
        future = self.dcp.async_save(self.state, checkpoint_id=path, process_group=self.group)
        return lambda: future.result() and None

    def dcp_staged(self, number: int) -> Finish:
        path, options = self.folder / f"dcp-s{number}", {"process_group": self.group, "async_stager": self.stager}
        answer = self.dcp.async_save(self.state, checkpoint_id=path, **options)
        answer.staging_completion.result()
        return lambda: answer.upload_completion.result() and None

    def own(self, number: int) -> Finish:
        self.saver.save(self.own_state, 3 * number)
        return lambda: None

    def own_async(self, number: int) -> Finish:
        self.saver.async_save(self.own_state, 3 * number + 1)
        return self.saver.wait

    def own_with_bits(self, number: int) -> Finish:
        from hpctool.train.agreement import Position

        check = self.agreement.check(Position(step=number))
        self.saver.async_save(self.own_state, 3 * number + 2, check=check)
        return self.saver.wait


def show(mb: int, num_ranks: int, found: dict[str, list[tuple[float, float, float]]]) -> None:
    """Medians. On a busy machine the processor time of the thread that trains says more than the wall clock."""
    columns = {name: list(zip(*rounds[1:], strict=True)) for name, rounds in found.items()}
    stalls, durables, used = ({name: 1000 * statistics.median(columns[name][n]) for name in NAMES} for n in range(3))
    print(f"\n{mb} MB on {num_ranks} ranks, medians of {len(found['copy']) - 1} rounds, in ms")
    print(f"{'':16}{'stall':>9}{'÷ copy':>9}{'processor':>11}{'÷ copy':>9}{'durable':>9}{'first stall':>13}")
    for name in NAMES:
        wall = f"{stalls[name]:9.1f}{stalls[name] / stalls['copy']:9.2f}"
        processor = f"{used[name]:11.1f}{used[name] / used['copy']:9.2f}"
        print(f"{name:16}{wall}{processor}{durables[name]:9.0f}{1000 * found[name][0][0]:13.1f}")


if __name__ == "__main__":
    main()
