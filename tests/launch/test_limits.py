"""Resources are understood as people write them, and refused in one sentence."""

import copy
import functools

import pytest
from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.errors import ConfigError
from hpctool.launch import limits
from hpctool.launch.schema import JobConfig


@functools.cache
def shipped() -> DictConfig:
    whole = config.compose("train", ["cluster=local"]).cfg
    return OmegaConf.create({key: whole[key] for key in JobConfig.__dataclass_fields__})


def composed(*overrides: str) -> DictConfig:
    cfg = copy.deepcopy(shipped())
    for text in overrides:
        key, value = text.split("=", 1)
        OmegaConf.update(cfg, key, value)
    return config.typed(cfg, JobConfig)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("4:00:00", 14400),
        ("30:00", 1800),
        ("2-00:00:00", 172800),
        ("2-12", 216000),
        ("1-02:30", 95400),
    ],
)
def test_time_is_read_as_slurm_reads_it(text: str, seconds: int) -> None:
    assert limits.time_limit_s(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "1:2:3:4", "-5", "0:00:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"resources\.time"):
        limits.time_limit_s(text)


def test_what_ships_passes() -> None:
    limits.check(composed())


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("name=../up", "name"),
        ("name=sweeps", "name"),
        ("cluster.kind=cloud", "cluster.kind"),
        ("code=maybe", "code"),
        ("resources.nodes=0", "resources.nodes"),
        ("resources.nodes=2", "resources.nodes"),
        ("resources.tasks_per_node=0", "resources.tasks_per_node"),
        ("resources.gpus_per_node=-1", "resources.gpus_per_node"),
        ("cluster.max_parallel=0", "cluster.max_parallel"),
        ("num_threads=0", "num_threads"),
        ("resources.time=2", "resources.time"),
    ],
)
def test_what_cannot_be_is_named_by_its_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limits.check(composed(override))
    assert caught.value.key == key
