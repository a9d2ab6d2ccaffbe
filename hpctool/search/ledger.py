"""What the ledger of a trial's run says to the search: how far it is saved, its cost, how its last attempt ended."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

from hpctool.launch import endings
from hpctool.launch.result import current_story
from hpctool.rundir import RunDir
from hpctool.track import hours


def used_s(rundir: RunDir, num_units: int, *, alive: bool) -> float:
    """Unit-seconds (GPUs or cores) of all attempts, lost work too; `alive`: the newest attempt runs now."""
    story = rundir.story()
    if not alive and story.state in ("running", "stopping"):
        # It died without a word: it has cost what it took until it was last heard of.
        story = dataclasses.replace(story, state="requeued")
    spans = hours.spans(rundir, story, time.time())
    return round(num_units * sum(span.used_s for span in spans), 3)


def saved_step(rundir: RunDir) -> int:
    """The step that the next attempt would go on from."""
    return endings.committed_step(rundir.story())


def died(rundir: RunDir) -> bool:
    """Whether the newest attempt has ended without a word."""
    story = rundir.story()
    begun = story.of_kind("begun")
    ended = {body["attempt"] for body in story.of_kind("ended")}
    return bool(begun) and begun[-1]["attempt"] not in ended


def trained_elsewhere(rundir: RunDir, workers: Iterable[RunDir]) -> str:
    """Which attempt runs in a process that lives and is none of these workers, in words; empty for none.

    Workers of one search are told apart by its journal: one of them may take a run from another.
    """
    story = current_story(rundir)
    begun = story.of_kind("begun")
    if story.state not in ("running", "stopping") or not begun:
        return ""
    newest = begun[-1]
    if any(_process(newest) == _process(body) for worker in workers for body in worker.story().of_kind("begun")):
        return ""
    job = f" in Slurm job {newest['slurm_job_id']}" if newest.get("slurm_job_id") else ""
    return f"attempt {newest['attempt']}{job}, process {newest.get('pid')} on {newest.get('host')}"


def _process(begun: Mapping[str, Any]) -> tuple[Any, ...]:
    return begun.get("host"), begun.get("pid"), begun.get("pid_start")
