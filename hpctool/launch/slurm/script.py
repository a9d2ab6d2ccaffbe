"""Submitting to Slurm through submitit's executor: it renders and submits, what runs inside the job is ours.

Nothing is pickled: the batch script starts `hpctool.launch.task` on a run folder, or on a list of cells for an array,
so it can be read, kept and submitted again by hand.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from hpctool.errors import InputError, SubmitError
from hpctool.launch.slurm import options


class Submitter(SlurmExecutor):
    """A SlurmExecutor whose job is a command of ours instead of a pickle."""

    def __init__(self, folder: Path, command: list[str], cfg: DictConfig, environment: dict[str, str]) -> None:
        super().__init__(folder, python=shlex.quote(sys.executable))
        self.command = command
        self.update_parameters(**self._convert_parameters(options.parameters(cfg, environment)))

    @classmethod
    def affinity(cls) -> int:
        """A dry run renders the script where there is no Slurm."""
        return 1

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m hpctool.launch.task {shlex.join(self.command)}"

    def script(self, num_cells: int | None = None, max_parallel: int = 1) -> str:
        """The batch script: of one run, or of an array of `num_cells`."""
        if num_cells is not None:
            self.parameters["map_count"] = num_cells
            self.parameters["array_parallelism"] = max_parallel
        text: str = self._make_submission_file_text(self._submitit_command_str, "dry-run")
        return text


def run_script(folder: Path, cfg: DictConfig, environment: dict[str, str]) -> str:
    """The batch script of a single run whose folder is `folder`."""
    return Submitter(folder / "logs", [str(folder)], cfg, environment).script()


def array_script(submission: Path, num_cells: int, cfg: DictConfig, environment: dict[str, str]) -> str:
    """The batch script of an array over the cells that the file `submission` lists."""
    # The index is the shell's to fill in: shlex would quote the dollar sign away.
    submitter = Submitter(submission.parent / "logs", ["--array", str(submission), "INDEX"], cfg, environment)
    script = submitter.script(num_cells, cfg.cluster.max_parallel)
    return script.replace(
        f"{shlex.quote(str(submission))} INDEX", f'{shlex.quote(str(submission))} "$SLURM_ARRAY_TASK_ID"'
    )


def submit_script(path: Path) -> str:
    """Hand a script to sbatch and give the job's id. Raises InputError where there is no Slurm, SubmitError."""
    if shutil.which("sbatch") is None:
        raise InputError("cluster=slurm, but there is no sbatch here. Use cluster=local, or log in where Slurm is.")
    # A job inside a job must not inherit the outer step's variables.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    kept |= {k: v for k, v in os.environ.items() if k in ("SLURM_CONF", "SLURM_CLUSTERS")}
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, timeout=120, check=False, env=kept)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).replace("\n", " ").removeprefix("sbatch: error: ")
        raise SubmitError(path, reason)
    try:
        job_id: str = SlurmExecutor._get_job_id_from_submission_command(done.stdout)
    except (FailedSubmissionError, FailedJobError) as error:
        raise SubmitError(path, f"sbatch answered '{done.stdout.strip()}'.") from error
    return job_id
