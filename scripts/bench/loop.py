"""What a training step costs beyond a bare PyTorch loop with the same model; beside Lightning Fabric and Accelerate.

    python scripts/bench/loop.py [--peers DIR] [--ranks 1 2] [--models mlp-tiny …] [--rounds 30] [--wall]

All contenders are processes that stand ready at the same time and take steps in short turns, round after round, so that
what else the machine does hits all of them alike. The best turn of each counts: what disturbs a turn only makes it
longer. Beside the bare loop's µs per step stand, for each other, its ratio to the bare loop and the µs that it adds.
Processor time is measured, which a busy machine disturbs less (all have one thread for computing); on an idle one
--wall says more where ranks wait for each other. The bare loop is the hardest to beat: its data is two tensors in
memory, it measures nothing and writes nothing. hpctool takes its real step: it reads the dataset from disk, sums up
training metrics, looks whether the gradient is finite, logs every 10 steps, and agrees with the other ranks.

Peers live in virtual environments of their own, DIR/lightning and DIR/accelerate, which are made if they are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent.parent
NUM_CLASSES = 10
#: name → network, its arguments, samples per step over all ranks, shape of an image
MODELS: dict[str, tuple[str, dict[str, Any], int, tuple[int, int, int]]] = {
    "mlp-tiny": ("MLP", {"hidden_sizes": [128, 128]}, 48, (8, 8, 1)),
    "mlp-wide": ("MLP", {"hidden_sizes": [1024, 1024]}, 256, (16, 16, 1)),
    "cnn-tiny": ("CNN", {"channels": [32, 64]}, 48, (8, 8, 1)),
    "cnn": ("CNN", {"channels": [32, 64]}, 128, (16, 16, 3)),
    "transformer": ("Transformer", {"width": 64, "depth": 2, "num_heads": 4, "patch_size": 2}, 128, (16, 16, 3)),
    "resnet": ("ResNet", {"width": 16, "depth": 1}, 64, (32, 32, 3)),
}
PEERS = {"fabric": ("lightning", "lightning-fabric"), "accelerate": ("accelerate", "accelerate")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="a folder of virtual environments; none: only the bare loop")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a contender runs in each round")
    parser.add_argument("--wall", action="store_true", help="measure the clock on the wall, not processor time")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "MODEL", "ROOT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    pythons = {"bare": sys.executable, "hpctool": sys.executable, **peer_pythons(args.peers)}
    clock = "wall clock" if args.wall else "processor time"
    print(f"best of {args.rounds} turns of {args.seconds} s, {clock}; ratio to the bare loop, and µs per step more")
    print(f"{'model':12s} {'ranks':>5s} {'bare µs/step':>13s}" + "".join(f"{kind:>18s}" for kind in list(pythons)[1:]))
    for num_ranks in args.ranks:
        for model in args.models:
            with tempfile.TemporaryDirectory() as root:
                make_data(Path(root), model)
                took = compare(pythons, model, Path(root), num_ranks, args)
            best = {kind: 1e6 * min(of_kind) for kind, of_kind in took.items()}
            bare = best.pop("bare")
            row = "".join(f"{mine / bare:10.3f} {mine - bare:+7.0f}" for mine in best.values())
            print(f"{model:12s} {num_ranks:5d} {bare:13.0f}{row}", flush=True)


def peer_pythons(folder: Path | None) -> dict[str, str]:
    """Kind → the Python of its virtual environment."""
    found = {}
    for kind, (name, package) in PEERS.items() if folder else ():
        assert folder is not None
        python = folder / name / "bin" / "python"
        if not python.exists():
            constraints = ["-c", str(CHECKOUT / "constraints.txt")]
            subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *constraints, "torch", "numpy", package], check=True)
        found[kind] = str(python)
    return found


def make_data(root: Path, model: str) -> None:
    """The same random images for all: as arrays, and as a dataset version."""
    import numpy as np

    from hpctool import config
    from hpctool.data.prepare import prepare
    from hpctool.data.schema import PrepareConfig
    from hpctool.world import World

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6000, *MODELS[model][3]), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, 6000)
    np.savez(root / "data.npz", image=images, label=np.array([f"c{label}" for label in labels]))
    np.save(root / "x.npy", images)
    np.save(root / "y.npy", labels)
    source = ["source=npz", f"source.path={root}/data.npz", "source.label=label"]
    splits = ["data.splits={train: 0.9, val: 0.1, test: 0, production: 0}"]
    composed = config.compose("prepare", ["data.name=bench", f"paths.root={root}", *source, *splits])
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(config.resolved(config.typed(composed.cfg, PrepareConfig)), World())


def compare(
    pythons: dict[str, str], model: str, root: Path, num_ranks: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round."""
    clock = "wall" if args.wall else "processor"
    teams = {kind: Team(python, kind, model, root, num_ranks) for kind, python in pythons.items()}
    try:
        once = {kind: team.steps(30)["wall"] / 30 for kind, team in teams.items()}
        # Whole intervals of logging, so that each turn has its part of them.
        count = max(10, 10 * round(args.seconds / once["bare"] / 10))
        took: dict[str, list[float]] = {kind: [] for kind in teams}
        for number in range(args.rounds):
            kinds = list(teams) if number % 2 else list(teams)[::-1]
            for kind in kinds:
                took[kind].append(teams[kind].steps(count)[clock] / count)
        return took
    finally:
        for team in teams.values():
            team.end()


class Team:
    """The ranks of one contender."""

    def __init__(self, python: str, kind: str, model: str, root: Path, num_ranks: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
        place = {
            "WORLD_SIZE": num_ranks,
            "LOCAL_WORLD_SIZE": num_ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        self.ranks = []
        for rank in range(num_ranks):
            whole = {**place, "RANK": rank, "LOCAL_RANK": rank} if num_ranks > 1 else {}
            environ = {**os.environ, **threads, **{name: str(value) for name, value in whole.items()}}
            command = [python, __file__, "--child", kind, model, str(root)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.ranks.append(subprocess.Popen(command, env=environ, **pipes))
        for rank in self.ranks:
            assert rank.stdout.readline().strip() == "ready", f"{kind} did not start"

    def steps(self, count: int) -> dict[str, float]:
        """Let all ranks take so many steps; the seconds of the slowest, by each clock."""
        for rank in self.ranks:
            print(count, file=rank.stdin, flush=True)
        answers = [json.loads(rank.stdout.readline()) for rank in self.ranks]
        return {clock: max(answer[clock] for answer in answers) for clock in answers[0]}

    def end(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.wait()


# ---------------------------------------------------------------------------------------------- one contender


def child(kind: str, model: str, root: str) -> None:
    """Stand ready, and take as many steps as each line of stdin says."""
    answers, sys.stdout = sys.stdout, io.StringIO()
    step = {"bare": bare, "hpctool": own, "fabric": fabric, "accelerate": accelerated}[kind](model, Path(root))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        began_s, used_s = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        took = {"wall": time.perf_counter() - began_s, "processor": time.process_time() - used_s}
        print(json.dumps(took), file=answers, flush=True)


def parts(model: str) -> tuple[Any, Any]:
    """The network and its optimizer, as conf/ has them."""
    import resnet
    import torch

    from hpctool import nets

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, arguments, _, (height, width, channels) = MODELS[model]
    made = getattr(resnet if network == "ResNet" else nets, network)(
        input_shape=(channels, height, width), num_classes=NUM_CLASSES, **arguments
    )
    return made, torch.optim.AdamW(made.parameters(), lr=3e-3, weight_decay=0.01)


def batches(model: str, root: Path) -> Callable[[], tuple[Any, Any]]:
    """This rank's next part of a global batch, shuffled anew in each epoch, as float images and labels."""
    import numpy as np
    import torch

    x_NHWC, y_N = torch.from_numpy(np.load(root / "x.npy")), torch.from_numpy(np.load(root / "y.npy"))
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    share = MODELS[model][2] // size

    def stream() -> Any:
        while True:
            rows_N = torch.randperm(len(x_NHWC))[rank::size]
            for start in range(0, len(rows_N) - share, share):
                chosen = rows_N[start : start + share]
                x_NCHW = x_NHWC[chosen].permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255.0
                yield x_NCHW, y_N[chosen]

    return stream().__next__


def bare(model: str, root: Path) -> Callable[[], None]:
    import torch
    from torch.nn.functional import cross_entropy

    network, optimizer = parts(model)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        network = torch.nn.parallel.DistributedDataParallel(network)
    batch = batches(model, root)

    def step() -> None:
        x_NCHW, y_N = batch()
        cross_entropy(network(x_NCHW), y_N).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def fabric(model: str, root: Path) -> Callable[[], None]:
    from lightning_fabric import Fabric
    from torch.nn.functional import cross_entropy

    size = int(os.environ.get("WORLD_SIZE", 1))
    strategy = "ddp" if size > 1 else "auto"
    there = Fabric(accelerator="cpu", devices=size, strategy=strategy)
    there.launch()
    network, optimizer = there.setup(*parts(model))
    batch = batches(model, root)

    def step() -> None:
        x_NCHW, y_N = batch()
        there.backward(cross_entropy(network(x_NCHW), y_N))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def accelerated(model: str, root: Path) -> Callable[[], None]:
    from accelerate import Accelerator
    from torch.nn.functional import cross_entropy

    there = Accelerator(cpu=True)
    network, optimizer = there.prepare(*parts(model))
    batch = batches(model, root)

    def step() -> None:
        x_NCHW, y_N = batch()
        there.backward(cross_entropy(network(x_NCHW), y_N))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def own(model: str, root: Path) -> Callable[[], None]:
    """The real loop of a real run, without a checkpoint and without a validation on the way."""
    from hpctool import config
    from hpctool.launch import task
    from hpctool.launch.plan import Request, make_plan, record
    from hpctool.launch.watchdog import watching
    from hpctool.place import place_from_environment
    from hpctool.rundir import RunDir, create_run
    from hpctool.track.metrics import MetricWriter
    from hpctool.train.loop import Trainer
    from hpctool.world import make_world

    network, arguments, batch_size, _ = MODELS[model]
    world = make_world()
    endless = "loop={max_steps: 1000000000, eval_every_steps: 1000000000, checkpoint_every_min: 1e9}"
    values = [f"model.{key}={value}" for key, value in arguments.items()]
    paths = [f"paths.datasets={root}/datasets", f"paths.runs={root}/runs"]
    chosen = [f"model={network.lower()}", *values, f"loop.global_batch_size={batch_size}", "data.name=bench"]

    def make() -> str:
        (root / "conf" / "model").mkdir(parents=True)
        shape = "input_shape: ${data.input_shape}\nnum_classes: ${data.num_classes}\n"
        own_model = "".join(f"{key}: {value}\n" for key, value in arguments.items())
        (root / "conf" / "model" / "resnet.yaml").write_text(f"_target_: resnet.ResNet\n{shape}{own_model}")
        plan = make_plan(Request("train", [*paths, *chosen, endless], [root / "conf"]), False)
        code = {"commit": "", "dirty": False, "snapshot": "none", "patch_sha256": ""}
        made = create_run(plan.runs, record(plan, plan.cells[0], code), {"config.yaml": config.to_yaml(plan.cfg)})
        return str(made.path)

    rundir = RunDir(Path(world.on_main(make)))
    place = place_from_environment()
    rundir.attempt = world.on_main(lambda: task.begin(rundir, "inline", place))
    watchdog = contextlib.ExitStack().enter_context(watching(rundir, world.rank, world.size))
    trainer = Trainer(rundir, world, watchdog)
    trainer.resume()
    trainer.warm_up()
    trainer.progress.begin()
    writer = MetricWriter(rundir, world)
    return lambda: trainer.advance(writer)


if __name__ == "__main__":
    main()
