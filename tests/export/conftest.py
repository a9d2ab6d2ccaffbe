"""A user's project with trained runs in it, made once by the commands themselves; and small published bundles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf

from hpctool import config
from hpctool.export import publish
from hpctool.export.resolve import resolve_export
from hpctool.export.schema import ExportConfig

# Models that cannot be scripted (keyword arguments) and must be traced.
MODELS = '''
from torch import nn

class Traceable(nn.Module):
    """Any batch size, also when it is traced."""
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    def forward(self, x, **_):
        return self.layers(x)

class Branching(Traceable):
    """A Python branch on the batch size: tracing keeps only one side of it."""
    def forward(self, x, **_):
        return self.layers(x) * (0.5 if x.shape[0] == 1 else 1.0)

class Baked(Traceable):
    """A shape that tracing writes into the graph as a number."""
    def forward(self, x, **_):
        return self.layers(x.reshape(int(x.shape[0]), 64))
'''

MAKE = """
import json, sys
from pathlib import Path
from hpctool.launch.submit import Request, submit
def do(job, *overrides, dirs=()):
    done = submit(Request(job, list(overrides), list(dirs)), say=lambda text: print(text, file=sys.stderr))
    assert done.exit_code == 0, done
    return done.runs[0]
do("prepare", "data.name=digits", "source=digits")
train = ["train", "data.name=digits", "track=off"]
runs = {"mlp": do(*train, "loop.max_epochs=3", "model.hidden_sizes=[16]")}
for name in ("Traceable", "Branching", "Baked"):
    runs[name] = do(*train, "loop.max_epochs=1", f"model={name}", dirs=[Path("conf")])
Path("trained.json").write_text(json.dumps(runs))
"""


@dataclass(frozen=True)
class Project:
    """A folder with a dataset and completed training runs; `runs` is name → run id."""

    root: Path
    runs: dict[str, str]

    def config(self, run: str, models: Path, *overrides: str) -> ExportConfig:
        """The resolved configuration of `hpctool export run=…` with the models elsewhere."""
        here = [f"paths.root={self.root}", f"paths.models={models}", f"run={self.runs.get(run, run)}"]
        cfg = config.typed(config.compose("export", [*here, *overrides]).cfg, ExportConfig)
        resolve_export(cfg)
        return cast(ExportConfig, OmegaConf.to_object(config.resolved(cfg)))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A trained project; its own models can be imported, here and by processes that are started."""
    root = tmp_path_factory.mktemp("project")
    (root / "ownmodels.py").write_text(MODELS)
    (root / "conf" / "model").mkdir(parents=True)
    for name in ("Traceable", "Branching", "Baked"):
        text = f"_target_: ownmodels.{name}\nnum_classes: ${{data.num_classes}}\n"
        (root / "conf" / "model" / f"{name}.yaml").write_text(text)
    environment = {**os.environ, "HPCTOOL_ROOT": str(root), "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", MAKE], cwd=root, env=environment, check=True, timeout=110)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        yield Project(root, json.loads((root / "trained.json").read_text()))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


Make = Callable[..., publish.Published]


@pytest.fixture
def make_bundle(tmp_path: Path) -> Make:
    """Publish a bundle whose files hold `text`, below tmp_path/models: quick, and whole as far as files go."""

    def make(text: str = "one", name: str = "digits", lineage: dict[str, Any] | None = None) -> publish.Published:
        with publish.staging(tmp_path / "models", name) as staged:
            for file in ("model.ts", "golden.npz"):
                publish.put(staged, file, text.encode())
            for file in ("signature.json", "reference.json"):
                publish.put_json(staged, file, {"text": text})
            return publish.publish(staged, lineage or {"run": "train-0123abcd", "metrics": {"val/accuracy": 0.98}})

    return make
