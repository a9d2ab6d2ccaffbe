"""The batch scripts, rendered where there is no Slurm; a stand-in sbatch shows what is handed over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from hpctool import config
from hpctool.errors import InputError, SubmitError
from hpctool.launch.schema import JobConfig
from hpctool.launch.slurm import script as slurm


@pytest.fixture(scope="module")
def cfg() -> DictConfig:
    overrides = [
        "cluster=slurm",
        "cluster.partition=gpu",
        "resources=gpu",
        "resources.nodes=2",
        "cluster.setup=[module load x]",
    ]
    whole = config.compose("train", [*overrides, "+cluster.extra={mail-type: END}", "resources.time=2-00:00:00"]).cfg
    return config.typed(DictConfig({key: whole[key] for key in JobConfig.__dataclass_fields__}), JobConfig)


@pytest.mark.slow
def test_a_run_script_asks_for_what_the_config_says_and_can_come_back(cfg: DictConfig) -> None:
    script = slurm.run_script(Path("/runs/a b-1234"), cfg, {"PYTHONPATH": "/code dir"})
    lines = script.splitlines()
    for wanted in (
        "#SBATCH --requeue",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=2880",
        "#SBATCH --mem=64GB",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --mail-type=END",
        "#SBATCH --open-mode=append",
        "module load x",
        "export PYTHONPATH='/code dir'",
        "export SRUN_CPUS_PER_TASK=8",
    ):
        assert wanted in lines
    assert "wckey" not in script
    command = next(line.strip() for line in lines if line.strip().startswith("srun "))
    assert "--kill-on-bad-exit=1" in command
    assert "attempt '/runs/a b-1234'" in lines


def test_an_array_script_leaves_the_index_to_the_shell(cfg: DictConfig) -> None:
    script = slurm.array_script(Path("/runs/sweeps/a/submissions/0001.json"), 36, 8, cfg, {})
    assert "#SBATCH --array=0-35%8" in script.splitlines()
    assert 'attempt --array /runs/sweeps/a/submissions/0001.json "$SLURM_ARRAY_TASK_ID"' in script


def stand_in(folder: Path, text: str) -> str:
    program = folder / "sbatch"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_the_job_id_is_read_and_variables_of_an_outer_job_are_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", stand_in(tmp_path, f"env > {tmp_path}/env; echo Submitted batch job 42"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/own.conf")
    assert slurm.submit_script(tmp_path / "submit.sh") == "42"
    seen = (tmp_path / "env").read_text()
    assert "SLURM_JOB_ID" not in seen
    assert "SLURM_CONF=/etc/own.conf" in seen


def test_a_refusal_is_passed_on_with_the_scripts_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_in(tmp_path, "echo 'sbatch: error: Invalid partition' >&2; exit 1"))
    with pytest.raises(SubmitError, match="Invalid partition") as caught:
        slurm.submit_script(tmp_path / "submit.sh")
    assert str(tmp_path / "submit.sh") in str(caught.value)


def test_where_there_is_no_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no sbatch"):
        slurm.submit_script(tmp_path / "submit.sh")


def run_body(tmp_path: Path, cfg: DictConfig, srun: str, settle: str = "exit 1") -> tuple[int, str]:
    """Run a rendered script under bash with stand-ins for srun, scontrol, Python; its exit code and the calls."""
    programs = {"srun": srun, "scontrol": f'echo "scontrol $@" >> {tmp_path}/calls', "sleep": "exit 0"}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python").write_text(f'#!/bin/bash\necho "python $@" >> {tmp_path}/calls; {settle}\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "run" / "logs").mkdir(parents=True)
    script = slurm.run_script(tmp_path / "run", cfg, {}).replace("module load x", "").replace(sys.executable, "python")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False)
    calls = tmp_path / "calls"
    return done.returncode, calls.read_text() if calls.exists() else ""


def test_the_script_ends_with_0_when_the_ranks_do_and_asks_nobody(tmp_path: Path, cfg: DictConfig) -> None:
    assert run_body(tmp_path, cfg, "exit 0") == (0, "")


def test_a_saved_job_is_requeued_by_the_script_but_not_one_that_was_cancelled(tmp_path: Path, cfg: DictConfig) -> None:
    code, calls = run_body(tmp_path, cfg, "exit 75")
    assert (code, calls) == (75, "scontrol requeue incomplete 7\n")


def test_a_failure_is_looked_into_and_its_judgement_is_the_exit_code(tmp_path: Path, cfg: DictConfig) -> None:
    code, calls = run_body(tmp_path, cfg, "echo 'srun: error: n1: task 1: Killed' >&2; exit 137", settle="exit 2")
    assert code == 2
    assert "-m hpctool.launch.slurm.settle --code 137" in calls
    assert "scontrol" not in calls


def test_a_failure_that_may_be_tried_again_is_requeued(tmp_path: Path, cfg: DictConfig) -> None:
    code, calls = run_body(tmp_path, cfg, "exit 137", settle="exit 75")
    assert code == 75
    assert "scontrol requeue incomplete 7" in calls


def test_the_script_outlives_the_signal_that_stops_the_ranks(tmp_path: Path, cfg: DictConfig) -> None:
    code, calls = run_body(tmp_path, cfg, "kill -TERM $PPID; exit 75")
    assert (code, calls) == (75, "scontrol requeue incomplete 7\n")
