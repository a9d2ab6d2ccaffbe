"""Everything about one run, for a person or a program that asks for it."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

from hpctool.launch.progress import progress
from hpctool.launch.result import current_story, rank_errors
from hpctool.launch.slurm.queue import QUEUE
from hpctool.launch.slurm.standing import is_open
from hpctool.rundir import RunDir, Story
from hpctool.track import hours
from hpctool.track.meters import idle_gpus
from hpctool.track.metrics import read_metrics, summary
from hpctool.track.row import noting, read_config, read_row


def describe(rundir: RunDir) -> dict[str, Any]:
    """One run as JSON can hold it: its row, and where, attempts, checkpoints, curves' summary, failure and paths.

    What is damaged is said in `problems` and left out; only a run without a readable run.json raises
    (UnknownName, NewerFormat, CorruptError).
    """
    record = rundir.record()
    row = read_row(rundir)
    story = Story()
    with noting([]):  # said by the row already
        story = current_story(rundir)
    found: dict[str, Any] = row.to_json() | {
        "identity": record.get("identity"),
        "inputs": rundir.inputs(),
        "choices": record.get("choices") or {},
        "overrides": record.get("overrides") or [],
        "continues": record.get("continues"),
        "code": (story.of_kind("code") or [record])[-1].get("code") or {},
        "where": story.where,
        "started": None,
        "ended": None,
        "history": [],
        "checkpoints": [],
        "artifacts": [],
        "summary": {},
        "idle": [],
        "failure": None,
        "outputs": {},
        "hours": None,
        "max_steps": None,
        "eta_s": None,
        "queue": _queue(story),
        "paths": _paths(rundir),
    }
    problems: list[str] = found["problems"]
    with noting(problems):
        curves = read_metrics(rundir, story)
        found["summary"], found["idle"] = summary(curves), idle_gpus(curves)
    with noting(problems):
        found["history"] = attempts(story)
        found["started"] = found["history"][0]["began"] if found["history"] else None
    with noting(problems):
        found["checkpoints"] = [_checkpoint(rundir, body) for body in story.checkpoints]
    with noting(problems):
        found["artifacts"] = artifacts(rundir)
    with noting(problems):
        found["failure"] = first_failure(rundir, story.attempt)
    with noting(problems):
        how_far = progress(rundir, story, time.time())
        found["max_steps"], found["eta_s"] = how_far.max_steps or None, how_far.eta_s
    with noting(problems):
        found["hours"] = hours.of_run(rundir, story, _resources(rundir), time.time()).to_json()
    with noting([]):  # said by the row already
        result = rundir.result() or {}
        if result.get("state") == row.state:
            found["ended"], found["outputs"] = result.get("ended"), result.get("outputs") or {}
    found["problems"] = list(dict.fromkeys(problems))
    return found


def attempts(story: Story) -> list[dict[str, Any]]:
    """The attempts as their ledger tells them: number, nodes, from_step, to_step, state, cause, began, duration_s.

    An attempt that never said how it ended, and is not the newest, is `lost`.
    """
    resumed = {body["attempt"]: body["step"] for body in story.of_kind("resumed")}
    ended = {body["attempt"]: body for body in story.of_kind("ended")}
    table = []
    for body in story.of_kind("begun"):
        number = body["attempt"]
        end = ended.get(number, {})
        reached = [one["step"] for one in story.checkpoints if one["attempt"] == number]
        is_newest = number == story.attempt
        table.append(
            {
                "number": number,
                "where": body.get("where", ""),
                "nodes": body.get("nodes") or [],
                "world_size": body.get("world_size"),
                "slurm_job_id": body.get("slurm_job_id", ""),
                "from_step": resumed.get(number, body.get("step", 0)),
                "to_step": end.get("step", max(reached, default=None)),
                "state": story.state if is_newest else end.get("state", "lost"),
                "cause": story.cause if is_newest else end.get("cause", "" if end else "killed, or its node was lost"),
                "began": body.get("time"),
                "duration_s": _seconds(body.get("time"), end.get("time")),
            }
        )
    return table


def first_failure(rundir: RunDir, attempt: int) -> dict[str, Any] | None:
    """What the rank that failed first in an attempt wrote down: rank, type, message, traceback, step, host, time."""
    if attempt == 0:
        return None
    errors = rank_errors(rundir, attempt)
    return {**errors[0], "attempt": attempt, "num_ranks_failed": len(errors)} if errors else None


def artifacts(rundir: RunDir) -> list[dict[str, Any]]:
    """The files that the job has left in artifacts/, in order of name: name, size_bytes."""
    folder = rundir.path / "artifacts"
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [{"name": str(path.relative_to(folder)), "size_bytes": path.stat().st_size} for path in found]


def _resources(rundir: RunDir) -> dict[str, Any]:
    plain = read_config(rundir)
    return {key.removeprefix("resources."): value for key, value in plain.items() if key.startswith("resources.")}


def _queue(story: Story) -> dict[str, Any] | None:
    """What squeue says of the run's job, while there is one: state and reason in Slurm's words, nodes, times."""
    job = QUEUE.answer().jobs.get(story.slurm_job_id) if is_open(story) else None
    return None if job is None else vars(job) | {"slurm_job_id": story.slurm_job_id}


def _checkpoint(rundir: RunDir, body: dict[str, Any]) -> dict[str, Any]:
    """A committed checkpoint; `size_bytes` is None where retention has removed it."""
    folder = rundir.path / body["path"]
    sizes = [path.stat().st_size for path in folder.iterdir()] if folder.is_dir() else None
    return {
        "step": body["step"],
        "attempt": body["attempt"],
        "path": body["path"],
        "digest": body.get("digest"),
        "size_bytes": None if sizes is None else sum(sizes),
    }


def _paths(rundir: RunDir) -> dict[str, str]:
    """Where things of this run lie, those that are there."""
    places: dict[str, Path] = {
        "run": rundir.path,
        "config": rundir.config_yaml,
        "logs": rundir.path / "logs",
        "metrics": rundir.path / "metrics",
        "tensorboard": rundir.tensorboard,
        "checkpoints": rundir.checkpoints,
        "artifacts": rundir.path / "artifacts",
    }
    return {name: str(path) for name, path in places.items() if path.exists()}


def _seconds(began: str | None, ended: str | None) -> float | None:
    if not began or not ended:
        return None
    parse = datetime.datetime.fromisoformat
    return (parse(ended) - parse(began)).total_seconds()
