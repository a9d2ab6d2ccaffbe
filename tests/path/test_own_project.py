"""A user's project in another folder, with its own model and data config and no fork, trains through --config-dir."""

from pathlib import Path

import numpy as np
import pytest

from tests.path.conftest import Shell

pytestmark = pytest.mark.slow  # whole commands and processes

NET = """
import math

import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes: int, input_shape: list[int], width: int = 16) -> None:
        super().__init__()
        self.flat = torch.nn.Flatten()
        self.one = torch.nn.Linear(math.prod(input_shape), width)
        self.two = torch.nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(self.flat(x))))
"""
READER = """
import numpy as np

def rows(count: int):
    random = np.random.default_rng(0)
    for number in range(count):
        label = number % 2
        image = np.full((4, 4, 1), 40 + 150 * label, np.uint8) + random.integers(0, 40, (4, 4, 1), np.uint8)
        yield {"key": f"row-{number}", "label": ["dark", "bright"][label], "image": image}
"""


@pytest.fixture
def project(tmp_path: Path) -> Shell:
    (tmp_path / "mynets.py").write_text(NET)
    (tmp_path / "myreader.py").write_text(READER)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(
        "_target_: mynets.Net\nnum_classes: ${data.num_classes}\ninput_shape: ${data.input_shape}\nwidth: 16\n"
    )
    (tmp_path / "conf" / "source").mkdir()
    (tmp_path / "conf" / "source" / "mine.yaml").write_text("_target_: myreader.rows\ncount: 200\n")
    return Shell(tmp_path, tmp_path)


def test_own_model_and_own_reader_train_inline_and_in_the_background(project: Shell) -> None:
    conf = ["--config-dir", "conf"]
    project.json("prepare", *conf, "data.name=shades", "source=mine")
    inline = project.json("train", *conf, "data.name=shades", "model=mine", "loop.max_steps=300", "name=here")
    local = project.json(
        "train", *conf, "data.name=shades", "model=mine", "model.width=32,16", "-m", "loop.max_steps=300",
        "cluster=local", "cluster.wait=true",
    )  # fmt: skip
    shown = [project.json("runs", "show", run) for run in inline["runs"] + local["runs"]]
    assert [run["state"] for run in shown] == ["completed"] * 3
    assert all(run["metrics"]["val/accuracy"] > 0.9 for run in shown)
    # The same model, data and seed: where it ran changes no bit.
    assert shown[0]["param_digest"] == shown[2]["param_digest"]


def test_an_own_primary_config_stands_on_ours(project: Shell) -> None:
    (project.folder / "conf" / "mytrain.yaml").write_text(
        "defaults: [train, override model: mine, _self_]\n"
        "hydra:\n  searchpath: [pkg://hpctool.conf]\n"
        "name: mytrain\nloop: {max_steps: 3}\n"
    )
    shown = project.run("train", "--config-dir", "conf", "--config-name", "mytrain", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "mynets.Net" in shown.stdout
    assert "max_steps: 3" in shown.stdout


def test_an_image_folder_becomes_a_dataset_that_trains(project: Shell) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (project.folder / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(120 * label, 120 * label + 100, (6, 6)).astype(np.uint8)
            Image.fromarray(pixels).save(project.folder / "photos" / name / f"{number}.png")
    project.json("prepare", "data.name=faces", "source=imagefolder", "source.path=photos")
    run = project.json("train", "data.name=faces", "loop.max_steps=40", "loop.global_batch_size=16")["runs"][0]
    assert project.json("runs", "show", run)["metrics"]["val/accuracy"] > 0.9
