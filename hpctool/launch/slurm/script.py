"""Submitting to Slurm through submitit's executor: it renders and submits, what runs inside the job is ours.

Nothing is pickled: the batch script starts `hpctool.launch.task` on a run folder, or on a list of cells for an array,
so it can be read, kept and submitted again by hand.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from omegaconf import DictConfig
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from hpctool.errors import InputError, SchedulerError, SubmitError
from hpctool.launch.slurm import ask, body, options


class Submitter(SlurmExecutor):
    """A SlurmExecutor that renders what we ask of Slurm around a body of our own; it pickles and submits nothing."""

    def __init__(self, logs: Path, cfg: DictConfig, environment: dict[str, str]) -> None:
        super().__init__(logs, python=shlex.quote(sys.executable))
        self.python_of_ranks = options.python(cfg)
        # The job is told before its time limit; it compares when it asks why it was told.
        environment = {**environment, "HPCTOOL_SIGNAL_DELAY_S": str(cfg.cluster.signal_delay_s)}
        parameters = options.parameters(cfg, environment)
        self.srun_args: list[str] = parameters.pop("srun_args")
        self.teardown: list[str] = parameters.pop("teardown", [])
        self.update_parameters(**self._convert_parameters(parameters | {"use_srun": False}))

    @classmethod
    def affinity(cls) -> int:
        """A dry run renders the script where there is no Slurm."""
        return 1

    def script(self, work: str, num_tasks: int | None = None, max_parallel: int = 1) -> str:
        """The batch script of one run, or of an array of `num_tasks`; `work` calls `attempt` (body.py)."""
        if num_tasks is not None:
            self.parameters["map_count"] = num_tasks
            self.parameters["array_parallelism"] = max_parallel
        commands = body.Commands(
            self.python_of_ranks, self.python, self.srun_args, Path(self.folder), num_tasks is not None
        )
        text: str = self._make_submission_file_text(body.whole(commands, "\n".join([work, *self.teardown])), "dry-run")
        return text


def run_script(folder: Path, cfg: DictConfig, environment: dict[str, str]) -> str:
    """The batch script of a single run whose folder is `folder`."""
    work = f"attempt {shlex.quote(str(folder))}\ncode=$?"
    return Submitter(folder / "logs", cfg, environment).script(work)


def array_script(
    submission: Path, num_cells: int, max_parallel: int, cfg: DictConfig, environment: dict[str, str]
) -> str:
    """The batch script of an array over the cells that the file `submission` lists."""
    work = f'attempt --array {shlex.quote(str(submission))} "$SLURM_ARRAY_TASK_ID"\ncode=$?'
    return Submitter(submission.parent / "logs", cfg, environment).script(work, num_cells, max_parallel)


def submit_script(path: Path, *options: str) -> str:
    """Hand a script to sbatch, with further options, and give the job's id. Raises SubmitError.

    Raises InputError where there is no Slurm.
    """
    require_slurm()
    try:
        answer = ask.call("sbatch", *options, str(path), timeout_s=120, env=ask.outside())
    except SchedulerError as error:
        raise SubmitError(path, f"{error.reason}.") from error
    try:
        job_id: str = SlurmExecutor._get_job_id_from_submission_command(answer)
    except (FailedSubmissionError, FailedJobError) as error:
        raise SubmitError(path, f"sbatch answered '{answer.strip()}'.") from error
    return job_id


def require_slurm() -> None:
    """Before anything is written. Raises InputError where there is no Slurm."""
    if not ask.have("sbatch"):
        raise InputError("cluster=slurm, but there is no sbatch here. Use cluster=local, or log in where Slurm is.")


def in_queue() -> dict[str, str]:
    """The scripts of this user's jobs in the queue: path → job id (of an array, its own). Raises SchedulerError."""
    listed = ask.call("squeue", "--me", "--noheader", "--format=%F|%o").splitlines()
    return {path.strip(): job.strip() for job, _, path in (line.partition("|") for line in listed)}


def may_have_been_taken(error: SubmitError) -> bool:
    """Whether Slurm may have taken a job although sbatch failed: it did not answer in time."""
    return bool(re.search("no answer within|timed out", error.reason, re.I))
