"""Cells side by side in one allocation: how much of it is asked for, and what part each of them gets."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.launch.schema import RunConfig
from hpctool.launch.slurm import loop


def asked(*overrides: str) -> DictConfig:
    composed = config.compose("run", ["cluster=slurm", "script=x", *overrides])
    cfg = OmegaConf.create(config.to_plain(config.typed(composed.cfg, RunConfig)))
    assert isinstance(cfg, DictConfig)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "whole", "share"),
    [
        (
            ["resources.tasks_per_node=2", "resources.mem_gb=1.5"],
            {"tasks_per_node": 6, "mem_gb": 4.5, "nodes": 1, "cpus_per_task": 1},
            ["--nodes=1", "--ntasks=2", "--ntasks-per-node=2", "--mem=1536M"],
        ),
        (["resources.nodes=2"], {"nodes": 2, "tasks_per_node": 3}, ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]),
        (["resources.gpus_per_node=1"], {"gpus_per_node": "3"}, ["--gpus-per-node=1"]),
        (["resources.gpus_per_node=a100:2"], {"gpus_per_node": "a100:6"}, ["--gpus-per-node=a100:2"]),
        (
            ["resources.gpus_per_node='3090:1,h100:1'"],
            {"gpus_per_node": "3090:3,h100:3"},
            ["--gpus-per-node=3090:1,h100:1"],
        ),
        (["resources.gpus=4"], {"gpus": "12"}, ["--gpus=4"]),
        (["resources.gpus_per_task=1"], {"gpus_per_task": "1", "tasks_per_node": 3}, []),
        (["resources.gres='gpu:a100:1,nvme'"], {"gres": "gpu:a100:3,nvme:3"}, ["--gres=gpu:a100:1,nvme"]),
        (["resources.licenses='matlab,ansys:2'"], {"licenses": "matlab:3,ansys:6"}, []),
    ],
)
def test_an_allocation_holds_a_share_of_each_cell(
    overrides: list[str], whole: dict[str, Any], share: list[str]
) -> None:
    cfg = asked(*overrides)
    found = loop.allocation(cfg, 3).resources
    assert {key: str(found[key]) for key in whole} == {key: str(value) for key, value in whole.items()}
    told = loop.share(cfg)
    assert told[0] == "--exact"
    assert set(share) <= set(told)
    assert not [word for word in told if word.startswith(("--gpus", "--gres", "--mem")) and word not in share]


@pytest.mark.slow
def test_an_allocation_for_one_cell_is_what_was_asked_for() -> None:
    cfg = asked("resources.gpus_per_node=1")
    assert loop.allocation(cfg, 1) is cfg
