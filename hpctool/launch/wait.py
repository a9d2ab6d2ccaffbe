"""Waiting for runs to end (cluster.wait=true, `runs watch`): a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpctool.errors import EXIT_DONE, EXIT_FAILED
from hpctool.launch import local
from hpctool.launch.result import current_story
from hpctool.rundir import RunDir, Story

ENDED = ("completed", "failed", "cancelled")
_POLL_S = 0.5
_SHOWN_RUNS = 20


def wait_for(runs: Path, ids: Sequence[str], say: Callable[[str], None], *, queued_here: bool = False) -> int:
    """Block until all runs have ended; 0 where all completed, else 1.

    A cell without a folder waits for its turn; with `queued_here`, only as long as the local queue knows it.
    """
    stories: dict[str, Story] = {}
    with _shown(say) as show:
        while True:
            waiting = [run_id for run_id in ids if run_id not in stories or stories[run_id].state not in ENDED]
            stories |= {run_id: current_story(RunDir(runs / run_id)) for run_id in waiting}
            if queued_here:
                stories |= _dropped(runs, [run_id for run_id in waiting if not stories[run_id].entries])
            show(stories)
            if all(story.state in ENDED for story in stories.values()):
                break
            # Somebody may have killed the local queue's supervisor while we wait.
            local.ensure_running(runs)
            time.sleep(_POLL_S)
    return EXIT_DONE if all(story.state == "completed" for story in stories.values()) else EXIT_FAILED


def _dropped(runs: Path, ids: Sequence[str]) -> dict[str, Story]:
    """Those of the runs without a folder that the local queue does not know any more: cancelled before they began."""
    if not ids:
        return {}
    queued = {row["run"] for row in local.status(runs)}
    gone = [run_id for run_id in ids if run_id not in queued and not RunDir(runs / run_id).run_json.exists()]
    return {run_id: Story(state="cancelled", cause="cancelled before it began") for run_id in gone}


class _Lines:
    """Plain lines: one for each change of state."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.before: dict[str, str] = {}

    def __enter__(self) -> Callable[[dict[str, Story]], None]:
        return self.show

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, stories: dict[str, Story]) -> None:
        for run_id, story in stories.items():
            if self.before.get(run_id) != story.state and story.state != "queued":
                why = f" ({story.cause})" if story.cause else ""
                step = f" at step {story.step}" if story.step else ""
                self.say(f"{run_id}: {story.state}{step}{why}")
            self.before[run_id] = story.state


class _Live:
    """A table that is drawn anew, with a line of counts under it."""

    def __enter__(self) -> Callable[[dict[str, Story]], None]:
        from rich.console import Console
        from rich.live import Live

        self.live: Any = Live(console=Console(stderr=True), refresh_per_second=4)
        self.live.__enter__()
        return self.show

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)

    def show(self, stories: dict[str, Story]) -> None:
        self.live.update(state_table(stories))


def state_table(stories: dict[str, Story]) -> Any:
    """A rich table of runs, those that are at work first, and the counts of all."""
    from rich import box
    from rich.table import Table

    counts = Counter(story.state for story in stories.values())
    caption = " · ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    for name, justify in (
        ("run", "left"),
        ("state", "left"),
        ("attempt", "right"),
        ("step", "right"),
        ("cause", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    order = ["running", "stopping", "requeued", "failed", "cancelled", "queued", "completed"]
    ranked = sorted(stories.items(), key=lambda item: order.index(item[1].state))
    for run_id, story in ranked[:_SHOWN_RUNS]:
        table.add_row(run_id, story.state, str(story.attempt or ""), str(story.step or ""), story.cause)
    return table


def _shown(say: Callable[[str], None]) -> _Lines | _Live:
    return _Live() if sys.stderr.isatty() else _Lines(say)
