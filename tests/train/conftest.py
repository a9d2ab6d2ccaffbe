"""A small dataset, runs to train on it, and ranks to train with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpctool import config
from hpctool.data.prepare import prepare
from hpctool.data.schema import PrepareConfig
from hpctool.launch import task
from hpctool.launch.plan import Request, make_plan, record
from hpctool.place import Place
from hpctool.rundir import RunDir, create_run
from hpctool.train.loop import train
from hpctool.world import World

#: a user's project: the module `usersown`, and conf/
PROJECT = Path(__file__).parent / "project"
#: projects that the README names
EXAMPLES = Path(__file__).parent.parent.parent / "examples"

MakeRun = Callable[..., RunDir]
Attempt = Callable[..., list[int]]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset `stripes`: 4×4 images of 3 classes, one label in ten missing."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 310)
    images = rng.integers(0, 120, (310, 4, 4), np.uint8)
    images[np.arange(310), labels] += 100
    names = np.where(rng.random(310) < 0.1, "", np.array(["top", "upper", "lower"])[labels])
    np.savez(root / "stripes.npz", image=images, label=names)
    source = ["source=npz", f"source.path={root}/stripes.npz", "source.label=label"]
    splits = ["data.splits={train: 0.5, val: 0.3, test: 0.2, production: 0}"]
    composed = config.compose("prepare", ["data.name=stripes", f"paths.root={root}", *source, *splits])
    prepare(config.resolved(config.typed(composed.cfg, PrepareConfig)), World())
    return root


@pytest.fixture
def make_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Make the run folder of a job as submission does.

    With the configuration of the user's project (`--config-dir`), whose module `usersown` can be imported.
    """
    for folder in (PROJECT, EXAMPLES / "gan", EXAMPLES / "language"):
        monkeypatch.syspath_prepend(str(folder))

    def make(*overrides: str, job: str = "train", project: Path = PROJECT) -> RunDir:
        paths = [f"paths.datasets={root}/datasets", f"paths.runs={tmp_path}/runs"]
        data = ["data.name=stripes"] if job == "train" else []
        request = Request(job, [*data, *paths, *overrides], [project / "conf"])
        plan = make_plan(request, False)
        code = {"commit": "", "dirty": False, "snapshot": "none", "patch_sha256": ""}
        texts = {"config.yaml": config.to_yaml(plan.cfg)}
        return create_run(plan.runs, record(plan, plan.cells[0], code), texts)

    return make


@pytest.fixture(scope="session")
def rank_server() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).parent / "rank_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server
        server.kill()


@pytest.fixture
def attempt(rank_server: subprocess.Popen[str]) -> Attempt:
    """Run one attempt of a run with real ranks over gloo; the ranks' exit codes."""

    def run(rundir: RunDir, num_ranks: int, where: str = "local", **environ: str) -> list[int]:
        assert rank_server.stdin is not None
        assert rank_server.stdout is not None
        projects = [str(PROJECT), *(str(folder) for folder in EXAMPLES.iterdir() if folder.is_dir())]
        order: dict[str, Any] = {"run": str(rundir.path), "where": where, "num_ranks": num_ranks}
        order |= {"path": projects, "environ": environ}
        print(json.dumps(order), file=rank_server.stdin, flush=True)
        codes: list[int] = json.loads(rank_server.stdout.readline())
        return codes

    return run


@pytest.fixture
def train_here() -> Iterator[Callable[[RunDir], dict[str, Any]]]:
    """Train in this process, as one rank; torch's global switches are as before afterwards."""

    def run(rundir: RunDir) -> dict[str, Any]:
        mine = RunDir(rundir.path)
        mine.attempt = task.begin(mine, "inline", Place())
        return train(mine, World())

    num_threads = torch.get_num_threads()
    yield run
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_threads)
