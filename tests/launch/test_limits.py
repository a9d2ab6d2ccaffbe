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
        OmegaConf.update(cfg, key, None if value == "null" else value)
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["gpus_per_node=2", "gpus_per_task=1"], "gpus_per_task", "add resources.gpus_per_node=0"),
        (["gpus_per_task=1", "gpus=4"], "gpus", "add resources.gpus_per_task=null"),
        (["gpus_per_node=a100:2", "gres=gpu:2"], "gres", "add resources.gpus_per_node=0"),
        (["mem_gb=8", "mem_per_cpu_gb=4"], "mem_per_cpu_gb", "add resources.mem_gb=null"),
        (["gpus=1", "mem_per_cpu_gb=4", "mem_per_gpu_gb=4"], "mem_per_gpu_gb", "add resources.mem_per_cpu_gb=null"),
        (["gpus_per_node=1", "cpus_per_gpu=4"], "cpus_per_gpu", "add resources.cpus_per_task=null"),
        (["cpus_per_task=null", "cpus_per_gpu=4"], "cpus_per_gpu", "no GPU is asked for"),
        (["mem_per_gpu_gb=4"], "mem_per_gpu_gb", "no GPU is asked for"),
        (["gpus_per_node=many"], "gpus_per_node", "a100:2"),
        (["gres=gpu=2"], "gres", "name:type:count"),
        (["mem_gb=-1"], "mem_gb", "the least is 0"),
        (["mem_per_cpu_gb=0"], "mem_per_cpu_gb", "the least is"),
        (["cpus_per_gpu=0"], "cpus_per_gpu", "the least is 1"),
    ],
)
def test_resources_that_contradict_each_other_are_refused(overrides: list[str], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limits.check(composed(*(f"resources.{text}" for text in overrides)))
    assert caught.value.key == f"resources.{key}"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["gpus_per_node=a100:2", "gres=nvme:1"],
        ["gpus=4", "cpus_per_task=null", "cpus_per_gpu=4", "mem_per_gpu_gb=16"],
        ["mem_gb=0", "exclusive=true", "licenses=matlab:2"],
        ["cpus_per_task=null"],
    ],
)
def test_resources_that_go_together_pass(overrides: list[str]) -> None:
    limits.check(composed(*(f"resources.{text}" for text in overrides)))


#: One text of each key that reaches a batch script.
TEXTS = [
    *(f"cluster.{key}" for key in ("partition", "account", "qos", "constraint", "exclude", "nodelist", "reservation")),
    *(f"cluster.{key}" for key in ("mail_type", "mail_user", "comment", "interface", "mpi")),
    *("cluster.container.image", "cluster.container.python", "resources.gres", "resources.licenses", "resources.time"),
    *("resources.gpus_per_node", "resources.gpus_per_task", "resources.gpus"),
]


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("text", ["a\n#SBATCH --uid=0", "a\rb", "a\0b", "a\x1b[2J", "a\u2028b"])
def test_no_value_can_begin_another_line_of_a_batch_script(key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limits.check(composed(f"{key}={text}"))
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cluster.container.mounts", ["/data\n:/data"]),
        ("cluster.container.extra", ["--env\nrm"]),
        ("cluster.srun_args", ["--a\n--b"]),
        ("cluster.extra", {"deadline\n#SBATCH --uid": "0"}),
        ("cluster.extra", {"deadline": "now\n#SBATCH --uid=0"}),
        ("cluster.setup", ["module load x\0"]),
    ],
)
def test_nor_can_a_list_or_a_mapping(key: str, value: object) -> None:
    cfg = composed("cluster.kind=slurm")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ConfigError, match="control character"):
        limits.check(cfg)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("cluster.partition", "gpu;rm", "no name"),
        ("cluster.account", "$(id)", "no name"),
        ("cluster.interface", "--help", "no name"),
        ("cluster.mail_type", "END,SOMETIMES", "SOMETIMES"),
        ("cluster.comment", " two ", "begins or ends with a space"),
        ("cluster.comment", "two\\", "backslash"),
        ("cluster.constraint", "a\\'b", "backslash"),
        ("cluster.container.kind", "docker", "apptainer, pyxis"),
        ("cluster.container.mounts", ["data"], "/outside:/inside"),
        ("cluster.container.mounts", ["/a:/b:rx"], "/outside:/inside"),
        ("cluster.srun_args", ["mpi=pmix"], "--name=value"),
        ("cluster.setup", ["module load x", " #SBATCH --time=9"], "cluster.extra"),
        ("cluster.teardown", ["#SBATCH --time=9"], "cluster.extra"),
        ("cluster.extra", {"partition": "gpu"}, "cluster.partition="),
        ("cluster.extra", {"mem": "4G"}, "resources.mem_gb="),
        ("cluster.extra", {"no-requeue": None}, "hpctool sets it"),
        ("cluster.extra", {"export": "NONE"}, "hpctool sets it"),
        ("cluster.extra", {"mail_type": "END"}, "mail-type"),
        ("cluster.extra", {"--contiguous": None}, "contiguous"),
    ],
)
def test_what_no_site_can_mean_is_refused(key: str, value: object, words: str) -> None:
    cfg = composed("cluster.kind=slurm", "cluster.container.kind=pyxis")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ConfigError) as caught:
        limits.check(cfg)
    assert caught.value.key.startswith(key)
    assert words in str(caught.value)


def test_shell_lines_may_be_several_in_one_text() -> None:
    cfg = composed("cluster.kind=slurm")
    OmegaConf.update(cfg, "cluster.setup", ["if true; then\n\tmodule load x\nfi"])
    limits.check(cfg)
