"""A loop that is not ours is told to stop and killed, on one rank and on several, and ends with the same bits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpctool.checkpoint import committed
from hpctool.checkpoint.preemptible import _Standalone

# Several starts of torch on several ranks: 47 s on two idle cores, over two minutes on busy ones.
pytestmark = pytest.mark.timeout(400)

Start = Callable[..., "list[Rank]"]

#: A plain PyTorch loop; `python loop.py <seconds a step>`.
TORCH_LOOP = """
import os, sys, time, torch, hpctool
import torch.distributed as dist
torch.set_num_threads(1); torch.manual_seed(0)
many = int(os.environ.get("WORLD_SIZE", "1")) > 1
if many: dist.init_process_group("gloo")
net = torch.nn.Sequential(
    torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2)
)
model = torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False) if many else net
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
losses = []
torch.manual_seed(dist.get_rank() if many else 0)
job = hpctool.Preemptible(every_steps=10)
job.register(model=model, optimizer=optimizer, schedule=schedule, losses=losses)
try:
    for step in job.steps(60):
        x = torch.randn(16, 8)
        loss = (model(x) - x[:, :2]).pow(2).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step(); schedule.step()
        losses.append(loss.item())
        print("step", step, flush=True)
        time.sleep(float(sys.argv[1]))
except SystemExit as stopped:
    os._exit(stopped.code)  # once in a hundred times torch aborts while a process of several ranks ends
from hpctool.checkpoint import state_digest
print("digest", state_digest([net.state_dict(), losses]))
sys.stdout.flush()
if many: dist.barrier()
os._exit(0)
"""

#: No torch: arrays, a generator, and a dict, on ranks that have nothing in common but the number of steps.
NUMPY_LOOP = """
import os, sys, time, numpy as np, hpctool
rank = int(os.environ.get("RANK", "0"))
np.random.seed(rank)
field, notes, rng = np.zeros(4 + rank), {"seen": 0}, np.random.default_rng(rank)
job = hpctool.Preemptible(every_steps=10)
job.register(field=field, notes=notes, rng=rng)
for step in job.steps(60):
    field += rng.normal(size=field.shape) + np.random.normal()
    notes["seen"] += rank + 1
    print("step", step, flush=True)
    time.sleep(float(sys.argv[1]))
from hpctool.checkpoint import state_digest
assert "torch" not in sys.modules
print("digest", state_digest([field, notes]))
"""


@dataclass
class Rank:
    """A process, and the file that holds what it says."""

    process: subprocess.Popen[bytes]
    said: Path

    def until_step(self, step: int) -> None:
        deadline = time.monotonic() + 60
        while f"step {step}\n" not in self.said.read_text():
            assert self.process.poll() is None, f"it ended before step {step}: {self.said.read_text()}"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ended(self) -> int:
        return self.process.wait(90)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the ranks of a script in tmp_path as torchrun would; what still runs is killed after the test."""
    started: list[Rank] = []

    def ranks(text: str, *arguments: object, size: int = 1) -> list[Rank]:
        (tmp_path / "loop.py").write_text(text)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        environ = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(size):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            command = [sys.executable, "loop.py", *map(str, arguments)]
            said = tmp_path / f"said-{len(started)}"
            with open(said, "wb") as file:
                own = environ | (place if size > 1 else {})
                process = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=file, stderr=file)
            started.append(Rank(process, said))
        return started[-size:]

    yield ranks
    for rank in started:
        rank.process.kill()
        rank.process.wait()


def digests(ranks: list[Rank]) -> list[str]:
    """What the ranks came to."""
    codes, said = [rank.ended() for rank in ranks], [rank.said.read_text() for rank in ranks]
    assert codes == [0] * len(ranks), said
    return [words.splitlines()[-1] for words in said]


# -- the same bits


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("loop", [TORCH_LOOP, NUMPY_LOOP], ids=["torch", "numpy"])
def test_a_loop_that_is_told_to_stop_and_killed_ends_with_the_same_bits(
    tmp_path: Path, start: Start, loop: str, size: int
) -> None:
    undisturbed = digests(start(loop, 0, size=size))
    (tmp_path / "checkpoints").rename(tmp_path / "undisturbed")

    told = start(loop, 0.1, size=size)
    told[-1].until_step(13)
    told[-1].process.terminate()
    assert [rank.ended() for rank in told] == [75] * size, [rank.said.read_text() for rank in told]
    assert 14 <= committed(_Standalone(tmp_path / "checkpoints"))[-1].step < 33

    killed = start(loop, 0.1, size=size)
    killed[0].until_step(33)
    for rank in killed:
        rank.process.kill()
        rank.ended()

    assert digests(start(loop, 0, size=size)) == undisturbed
    assert digests(start(loop, 0, size=size)) == undisturbed, "a loop that is over is not run again"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_gone_around(tmp_path: Path, start: Start) -> None:
    undisturbed = digests(start(NUMPY_LOOP, 0))
    newest = tmp_path / "checkpoints" / "step-00000060.a1"
    (newest / "state.json").write_text("{}")
    assert digests(start(NUMPY_LOOP, 0)) == undisturbed
    assert (tmp_path / "checkpoints" / "step-00000060.a1.corrupt-1").exists()


@pytest.mark.slow
def test_an_attempt_that_was_overtaken_may_not_save(tmp_path: Path, start: Start) -> None:
    (zombie,) = start(NUMPY_LOOP, 0.1)
    zombie.until_step(11)
    assert len(digests(start(NUMPY_LOOP, 0))) == 1
    assert zombie.ended() == 1
    assert "FencedError" in zombie.said.read_text()
    assert {made.attempt for made in committed(_Standalone(tmp_path / "checkpoints"))} == {1, 2}


@pytest.mark.slow
def test_before_and_after_the_loop_a_signal_does_what_it_did(start: Start) -> None:
    text = """
import hpctool, signal
job = hpctool.Preemptible()
job.register(notes={})
assert {signal.getsignal(signal.SIGTERM) for _ in job.steps(2)} != {signal.SIG_DFL}
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
for step in job.steps(5):
    break
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""
    (rank,) = start(text)
    assert rank.ended() == 0, rank.said.read_text()
