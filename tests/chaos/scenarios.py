"""What is rehearsed by the tests and by scripts/soak: small jobs of every parallel form, hard to bring back exactly."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpctool import config
from hpctool.chaos.faults import USUAL
from hpctool.chaos.rehearsal import Order, Rehearsal
from hpctool.chaos.report import Verdict
from hpctool.data.prepare import prepare
from hpctool.data.schema import PrepareConfig
from hpctool.launch.submit import Request
from hpctool.world import World

ROOT = Path(__file__).parent.parent.parent
PROJECT = ROOT / "tests" / "train" / "project"
HEAT = ROOT / "examples" / "heat"
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")

#: Everything that makes exactness hard, at once (tests/train/test_resume.py), in few and quick steps.
HARD = (
    *("data.name=stripes", "model=tangled", "track=off", "schedule.warmup_fraction=0.2"),
    "augment={_target_: hpctool.train.augment.RandomShift, pixels: 1}",
    "loop={max_steps: 40, global_batch_size: 24, accumulate: 2, checkpoint_every_steps: 4, eval_every_steps: 6}",
    "loop={ema: 0.9, grad_clip: 1.0}",
)


@dataclass(frozen=True)
class Scenario:
    """A job that is rehearsed."""

    job: str
    overrides: tuple[str, ...]
    num_ranks: int
    #: how long a rank may hang; nothing watches over a program, so there the rehearsal itself ends it
    patience_s: float = 20.0
    kinds: tuple[str, ...] = USUAL
    config_dirs: tuple[Path, ...] = field(default=(PROJECT / "conf",))


SCENARIOS = {
    "single": Scenario("train", HARD, 1),
    "ddp": Scenario("train", (*HARD, "parallel.bucket_mb=0.004"), 3),
    "fsdp": Scenario("train", (*HARD, "parallel=fsdp"), 3),
    "mpi": Scenario("run", ("script=heat.sh", "args=[--size,48,--steps,6000,--every,500]"), 1, 4.0, config_dirs=()),
}


def make_project(root: Path) -> Path:
    """A folder to stand in: the dataset `stripes`, the module `usersown` and the heat example."""
    root.mkdir(parents=True, exist_ok=True)
    for path in (PROJECT / "usersown.py", *HEAT.iterdir()):
        if path.is_file():
            shutil.copy(path, root)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 310)
    images = rng.integers(0, 120, (310, 4, 4), np.uint8)
    images[np.arange(310), labels] += 100
    np.savez(root / "stripes.npz", image=images, label=np.array(["top", "upper", "lower"])[labels])
    source = ["source=npz", f"source.path={root}/stripes.npz", "source.label=label"]
    composed = config.compose("prepare", ["data.name=stripes", f"paths.root={root}", *source])
    prepare(config.resolved(config.typed(composed.cfg, PrepareConfig)), World())
    return root


def _say(text: str) -> None:
    print(text, flush=True)


def rehearse(name: str, folder: Path, count: int, seed: int, say: Callable[[str], None] = _say) -> Verdict:
    """Rehearse a scenario, standing in its project."""
    return rehearse_one(SCENARIOS[name], folder, count, seed, say)


def rehearse_one(one: Scenario, folder: Path, count: int, seed: int, say: Callable[[str], None] = _say) -> Verdict:
    """The same for one that has no name."""
    request = Request(one.job, list(one.overrides), list(one.config_dirs))
    order = Order(request, folder, one.kinds, count, one.num_ranks, seed, one.patience_s, say, lambda _line: None)
    verdict = Rehearsal(order).run()
    verdict.write()
    return verdict
