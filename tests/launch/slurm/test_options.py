"""What a configuration asks of Slurm stands in the script, each thing in Slurm's own words and quoted."""

import functools
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.launch import limits
from hpctool.launch.schema import JobConfig
from hpctool.launch.slurm import script as slurm


@functools.cache
def shipped(resources: str) -> DictConfig:
    whole = config.compose("train", ["cluster=slurm", f"resources={resources}"]).cfg
    return OmegaConf.create({key: whole[key] for key in JobConfig.__dataclass_fields__})


def script(values: dict[str, Any], resources: str = "cpu") -> list[str]:
    """The lines of the batch script of a run with these values, which have passed the check."""
    cfg = shipped(resources).copy()
    for key, value in values.items():
        OmegaConf.update(cfg, key, value)
    cfg = config.typed(cfg, JobConfig)
    limits.check(cfg)
    return slurm.run_script(Path("/runs/train-1a2b"), cfg, {"PYTHONPATH": "/code"}).splitlines()


def srun(lines: list[str]) -> list[str]:
    """The words of the command that starts the ranks, as the shell sees them."""
    first = next(number for number, line in enumerate(lines) if line.lstrip().startswith("srun "))
    return shlex.split(lines[first].rstrip("\\") + lines[first + 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("resources.gpus_per_node", 2, "--gpus-per-node=2"),
        ("resources.gpus_per_node", "a100:2", "--gpus-per-node=a100:2"),
        ("resources.gpus_per_task", "a100:1", "--gpus-per-task=a100:1"),
        ("resources.gpus", 4, "--gpus=4"),
        ("resources.gres", "gpu:a100:2,nvme:1", "--gres=gpu:a100:2,nvme:1"),
        ("resources.mem_gb", 1.5, "--mem=1536MB"),
        ("resources.mem_gb", 0, "--mem=0GB"),
        ("resources.mem_per_cpu_gb", 1.5, "--mem-per-cpu=1536MB"),
        ("resources.exclusive", True, "--exclusive"),
        ("resources.licenses", "matlab:2", "--licenses=matlab:2"),
        ("resources.time", "2-00:00:30", "--time=2881"),
        ("cluster.partition", "a,b", "--partition=a,b"),
        ("cluster.account", "physics", "--account=physics"),
        ("cluster.qos", "high", "--qos=high"),
        ("cluster.constraint", "[rack1*2&rack2]", "--constraint='[rack1*2&rack2]'"),
        ("cluster.exclude", "n[1-3]", "--exclude='n[1-3]'"),
        ("cluster.nodelist", "n4", "--nodelist=n4"),
        ("cluster.reservation", "course", "--reservation=course"),
        ("cluster.mail_type", "END,FAIL", "--mail-type=END,FAIL"),
        ("cluster.mail_user", "me@example.org", "--mail-user=me@example.org"),
        ("cluster.comment", 'a "b"; $(c)', "--comment='a \"b\"; $(c)'"),
        ("cluster.signal_delay_s", 30, "--signal=USR2@30"),
        ("cluster.extra", {"deadline": "now+2days"}, "--deadline=now+2days"),
        ("cluster.extra", {"contiguous": None}, "--contiguous"),
    ],
)
def test_each_resource_is_an_option_of_sbatch(key: str, value: object, line: str) -> None:
    lines = script({key: value})
    assert f"#SBATCH {line}" in lines
    first_command = lines.index("# setup")
    assert lines.index(f"#SBATCH {line}") < first_command, "sbatch reads no options after the first command"


def test_what_is_not_asked_for_is_not_said() -> None:
    lines = [line for line in script({}) if line.startswith("#SBATCH")]
    assert [line.partition("=")[0].removeprefix("#SBATCH --") for line in lines] == [
        *("cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time"),
    ]


def test_gpus_of_each_task_come_with_the_number_of_tasks_that_slurm_wants() -> None:
    lines = script({"resources.gpus_per_task": 1, "resources.nodes": 2, "resources.tasks_per_node": 3})
    assert "#SBATCH --ntasks=6" in lines


@pytest.mark.slow
def test_cpus_by_gpu_leave_out_cpus_by_task() -> None:
    asked = {"resources.cpus_per_task": None, "resources.cpus_per_gpu": 4, "resources.mem_gb": None}
    lines = script({**asked, "resources.mem_per_gpu_gb": 16}, resources="gpu")
    assert "#SBATCH --cpus-per-gpu=4" in lines
    assert "#SBATCH --mem-per-gpu=16384MB" in lines
    assert "cpus-per-task" not in "".join(lines)
    assert "SRUN_CPUS_PER_TASK" not in "".join(lines)


def test_the_network_interface_is_told_to_everybody_who_connects() -> None:
    lines = script({"cluster.interface": "ib0"})
    for name in ("HPCTOOL_INTERFACE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMPI_MCA_btl_tcp_if_include"):
        assert f"export {name}=ib0" in lines


def test_mpi_joins_the_ranks_where_its_plugin_is_named() -> None:
    lines = script({"cluster.mpi": "pmix"})
    assert "--mpi=pmix" in srun(lines)
    assert "export HPCTOOL_WORLD=mpi" in lines
    assert "HPCTOOL_WORLD" not in "".join(script({}))


def test_lines_before_and_after_the_ranks_stand_where_they_are_run() -> None:
    lines = script({"cluster.setup": ["module load x"], "cluster.teardown": ["rm -r /scratch/$SLURM_JOB_ID"]})
    started = next(number for number, line in enumerate(lines) if line.startswith("attempt "))
    assert (
        lines.index("module load x") < started < lines.index("rm -r /scratch/$SLURM_JOB_ID") < lines.index("exit $code")
    )


def test_pyxis_is_options_of_srun_and_python_is_the_containers() -> None:
    container = {"image": "/images/a b.sqsh", "kind": "pyxis", "mounts": ["/data:/data:ro"], "python": "/opt/python"}
    words = srun(
        script({"cluster.container": container | {"extra": ["--container-writable"]}, "paths.runs": "/r/runs"})
    )
    assert "--container-image=/images/a b.sqsh" in words
    assert "--container-writable" in words
    mounts = next(word for word in words if word.startswith("--container-mounts="))
    assert mounts.removeprefix("--container-mounts=").split(",") == ["/r/runs:/r/runs", "/data:/data:ro"]
    assert words[words.index("-ISc") - 1] == "/opt/python"


def test_apptainer_stands_before_python_and_sees_the_folders_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    container = {"image": "/images/a.sif", "kind": "apptainer", "mounts": ["/data"], "extra": ["--cleanenv"]}
    paths = {key: str(tmp_path / key) for key in ("runs", "datasets", "models")}
    lines = script({"cluster.container": container, **{f"paths.{key}": path for key, path in paths.items()}})
    words = srun(lines)
    start = words.index("apptainer")
    assert words[start : words.index("-ISc")] == [
        *("apptainer", "exec", "--nv", f"--bind={tmp_path}/datasets:{tmp_path}/datasets"),
        *(f"--bind={tmp_path}/runs:{tmp_path}/runs", "--bind=/data", "--cleanenv", "/images/a.sif", "python3"),
    ]
    assert not [line for line in lines if "hpctool.launch.slurm.settle" in line and "apptainer" in line], (
        "what looks at the end runs outside: containers have no scontrol"
    )


def test_a_folder_within_another_is_mounted_once(tmp_path: Path) -> None:
    (tmp_path / "runs" / "data").mkdir(parents=True)
    container = {"image": "/images/a.sif", "kind": "apptainer"}
    lines = script({"cluster.container": container, "paths.runs": str(tmp_path / "runs")} | {
        "paths.datasets": str(tmp_path / "runs" / "data")
    })  # fmt: skip
    assert [word for word in srun(lines) if word.startswith("--bind=")] == [f"--bind={tmp_path}/runs:{tmp_path}/runs"]
