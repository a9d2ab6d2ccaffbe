"""What the ledger of a trial's run says to the search: how far it is saved, its cost, how its last attempt ended."""

from __future__ import annotations

import dataclasses
import time

from hpctool.launch import endings
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
