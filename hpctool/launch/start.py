"""Starting runs that have a folder: here, in the local queue, or on Slurm; and stopping them for good."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpctool import config, files
from hpctool.errors import EXIT_DONE, InputError, OperationError
from hpctool.launch import chain, endings, handover, inline, limits, local, snapshot
from hpctool.launch.endings import unfit_nodes
from hpctool.launch.result import current_story, is_alive
from hpctool.launch.slurm import ask, check
from hpctool.launch.slurm import script as slurm
from hpctool.launch.slurm.queue import QUEUE, cluster_name
from hpctool.launch.slurm.standing import cluster_of, is_elsewhere
from hpctool.place import Place
from hpctool.rundir import OVER, RunDir, Story, now, who

Say = Callable[[str], None]

#: A rank writes a beat every five seconds, and a network file system may show it up to a minute late.
SILENT_S = 120.0


def start(rundir: RunDir, cfg: DictConfig, say: Say, seen: int) -> int:
    """Start a run where its config says; the exit code of an inline run, else 0.

    `seen`: the newest entry of its ledger when that was decided. Raises SubmitError, InputError, ConflictError.
    """
    kind = cfg.cluster.kind
    if kind == "inline":
        return inline.run_here(rundir, Place())
    if kind == "local":
        handover.mark_submitted(rundir, "local")
        record = rundir.record()
        local.enqueue(rundir.path.parent, [ticket(cfg, rundir.id, record["sweep"], record["cell"])])
        say(f"It runs in the background here. hpctool runs show {rundir.id} · hpctool runs logs -f {rundir.id}")
        return EXIT_DONE
    script = slurm.run_script(rundir.path, cfg, snapshot.environment(rundir))
    files.write_atomic(rundir.submit_script, script, mode=0o755)
    (rundir.path / "logs").mkdir(exist_ok=True)
    dependency = chain.Parents(rundir.path.parent).dependency(rundir.record().get("after"))
    options = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    if unfit := unfit_nodes(rundir.story()):
        options.append(f"--exclude={','.join(filter(None, [cfg.cluster.exclude, *unfit]))}")
        say(f"Without {', '.join(unfit)}: a start check failed there.")
    job_id = handover.to_slurm(rundir, options, seen)
    say(f"Slurm job {job_id}{f', after {dependency}' if dependency else ''}. hpctool runs show {rundir.id}")
    return EXIT_DONE


def retry(rundir: RunDir, say: Say) -> int:
    """Start a failed or cancelled run once more; it goes on from its newest checkpoint. Raises InputError.

    Raises ConflictError where somebody else does, SubmitError, SchedulerError.
    """
    handover.find_submitted(rundir)
    story = current_story(rundir)
    is_lost = bool(local.lost(rundir.path.parent, {rundir.id: story}))
    if story.state not in ("failed", "cancelled") and not is_lost:
        raise InputError(f"Run {rundir.id} is {story.state}; only a failed or cancelled run can be tried again.")
    cfg = config.load(rundir.config_yaml)
    chain.check(rundir.path.parent, [rundir.record().get("after")], cfg.cluster.kind)
    check.before_submission(rundir.path.parent, [config.to_plain(cfg)], say)
    rundir.result_json.unlink(missing_ok=True)
    how = "was said to be queued here and is not" if is_lost else f"ended {story.state}"
    say(f"run {rundir.id} {how} at step {story.step}; it goes on from there.")
    code = start(rundir, cfg, say, story.last)
    from hpctool.launch import repair

    repair.after_restart(rundir.path.parent, [rundir.id], say)
    return code


def cancel(rundir: RunDir) -> str:
    """End a run for good, and give a sentence on how. It saves if it can; nothing brings it back but `retry`.

    Raises InputError where it has ended, SchedulerError where Slurm does not answer; asked again, it is tried again.
    """
    handover.find_submitted(rundir)
    story = current_story(rundir)
    # Its job is still there where scancel did not reach Slurm.
    is_left = story.state == "cancelled" and story.where == "slurm" and _is_in_queue(story.slurm_job_id)
    if story.state in OVER and not is_left:
        raise InputError(f"Run {rundir.id} is {story.state} already; there is nothing to cancel.")
    if local.cancel(rundir.path.parent, rundir.id):
        return f"run {rundir.id} is told to stop; it saves if it can."
    if (story.where == "slurm" or story.slurm_job_id) and is_elsewhere(cluster := cluster_of(story)):
        raise OperationError(
            f"Run {rundir.id} is on the cluster '{cluster}', and this is '{cluster_name()}'. Log in there to cancel it."
        )
    # Said first: whoever sees the signal must know that its user wants no requeue.
    rundir.ledger.append({"kind": "cancel", "by": who(), "time": now()})
    if story.where == "slurm" and story.slurm_job_id:
        ask.call("scancel", story.slurm_job_id)
        return f"Slurm job {story.slurm_job_id} of run {rundir.id} is cancelled."
    begun = (story.of_kind("begun") or [{}])[-1]
    if story.where == "inline" and story.state in ("running", "stopping") and begun["host"] != socket.gethostname():
        return _cancel_elsewhere(rundir, story, begun)
    if begun.get("host") == socket.gethostname() and is_alive(begun):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(begun["pid"]), signal.SIGTERM)
        return f"run {rundir.id} is told to stop; it saves if it can."
    return f"run {rundir.id} is cancelled."


def _cancel_elsewhere(rundir: RunDir, story: Story, begun: dict[str, Any]) -> str:
    """A run that was typed on another host. Where that gives no sign of life any more, this is its end.

    Should it come back to life all the same, a next attempt fences it.
    """
    host, silent_s = begun["host"], _silent_s(rundir, story.attempt)
    if story.slurm_job_id and begun.get("slurm_step_id"):
        ask.call("scancel", "--signal=TERM", f"{story.slurm_job_id}.{begun['slurm_step_id']}")
        return f"run {rundir.id} is told to stop; it saves if it can."
    end_it = f"run {rundir.id} runs on {host}, which cannot be told from here: end it there."
    if silent_s is None and story.state == "running":
        return f"{end_it} If {host} is gone, cancel it once more."
    if silent_s is not None and silent_s < SILENT_S:
        return f"{end_it} It gave a sign of life {silent_s:.0f} s ago; cancel it once more where that is its last."
    endings.record_gone(rundir)
    return f"run {rundir.id} is cancelled; {host} gives no sign of life."


def _silent_s(rundir: RunDir, attempt: int) -> float | None:
    """For how many seconds rank 0 has given no sign of life; None for a job that gives no beats."""
    try:
        beat = rundir.beat(0, attempt).stat().st_mtime
        return max(0.0, time.time() - max(beat, rundir.log(0, attempt).stat().st_mtime))
    except FileNotFoundError:
        return None


def ticket(cfg: DictConfig, run: str, sweep: str | None = None, cell: int | None = None) -> local.Ticket:
    """A run's place in the local queue, with the limits that its config gives."""
    cluster = cfg.cluster
    return local.Ticket(
        run=run,
        sweep=sweep,
        cell=cell,
        num_ranks=limits.num_ranks(cfg),
        time_s=float(limits.time_limit_s(cfg.resources.time)),
        signal_delay_s=cluster.signal_delay_s,
        kill_wait_s=cluster.kill_wait_s,
        max_parallel=cluster.max_parallel,
        max_failures=cluster.max_failures,
    )


def short(path: Path) -> str:
    """A path as a person standing here would write it."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def _is_in_queue(job_id: str) -> bool:
    job = QUEUE.answer().jobs.get(job_id)
    return job is not None and not job.is_over
