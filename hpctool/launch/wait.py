"""Waiting for runs to end (cluster.wait=true, `runs watch`): a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpctool.errors import EXIT_DONE, EXIT_FAILED
from hpctool.launch import local, overview
from hpctool.launch.cells import Sweep
from hpctool.launch.progress import Progress, duration_text, progress
from hpctool.launch.slurm.queue import QUEUE
from hpctool.rundir import OVER, RunDir, Story

_POLL_S = 0.5
#: Looking at ten thousand runs takes a while: most of the time is spent waiting all the same.
_REST = 4.0
_SHOWN_RUNS = 20


#: What a table says of a run beside its state: something short about its metrics.
Course = Callable[[RunDir, Story], str]


def wait_for(
    runs: Path,
    ids: Sequence[str],
    say: Callable[[str], None],
    sweeps: Sequence[Sweep] = (),
    course: Course | None = None,
) -> int:
    """Block until all runs have ended; 0 where all completed, else 1.

    Those that are cells of `sweeps` need no folder yet: they wait for their turn, as long as anybody will run them.
    """
    watched = Watched(runs, ids, sweeps, course)
    with _shown(say) as show:
        while True:
            began_s = time.monotonic()
            watched.look()
            show(watched)
            if watched.is_over:
                break
            # Somebody may have killed the local queue's supervisor while we wait.
            local.ensure_running(runs)
            time.sleep(max(_POLL_S, _REST * (time.monotonic() - began_s)))
    return EXIT_DONE if all(story.state == "completed" for story in watched.stories.values()) else EXIT_FAILED


class Watched:
    """Runs that are looked at again and again: only those that may have changed."""

    def __init__(
        self, runs: Path, ids: Sequence[str], sweeps: Sequence[Sweep] = (), course: Course | None = None
    ) -> None:
        self.runs = runs
        self._course = course
        self._courses: dict[str, tuple[Story, str]] = {}
        self.ids = list(dict.fromkeys(ids))
        self.stories: dict[str, Story] = {}
        #: run id → the sweeps that it is a cell of, with its index there
        self._cells: dict[str, list[tuple[Sweep, int]]] = {}
        for sweep in sweeps:
            for index, run_id in enumerate(sweep.run_ids):
                self._cells.setdefault(run_id, []).append((sweep, index))

    def look(self) -> None:
        """Bring the stories up to date: one listing, one squeue at most."""
        there = overview.begun(self.runs)
        open_ = [i for i in self.ids if i not in self.stories or self.stories[i].state not in OVER]
        begun = [run_id for run_id in open_ if run_id in there or run_id not in self._cells]
        told = overview.quick_stories([RunDir(self.runs / run_id) for run_id in begun])
        self.stories |= dict(zip(begun, told, strict=True))
        # A folder without any entry is that of a cell which begins right now, or of one that was killed doing so.
        waiting = [i for i in open_ if i in self._cells and (i not in there or not self.stories[i].entries)]
        self.stories |= self._unbegun(waiting)

    def _unbegun(self, waiting: Sequence[str]) -> dict[str, Story]:
        """How cells stand that have not begun; of several sweeps, one that will run the cell counts."""
        sweeps = {sweep.id: sweep for run_id in waiting for sweep, _ in self._cells[run_id]}
        found: dict[str, Story] = {}
        for sweep in sweeps.values():
            ids = sweep.run_ids
            indices = [index for run_id in waiting for one, index in self._cells[run_id] if one.id == sweep.id]
            for index, story in overview.unbegun(self.runs, sweep, indices).items():
                run_id = ids[index]
                if run_id not in found or story.entries:
                    found[run_id] = story
        return found

    @property
    def is_over(self) -> bool:
        """Whether all have ended, or will never begin."""
        return all(
            story.state in OVER or (run_id in self._cells and not story.entries)
            for run_id, story in self.stories.items()
        )

    def progress(self, run_id: str) -> Progress:
        """How far one of them is."""
        return progress(RunDir(self.runs / run_id), self.stories[run_id], time.time())

    def course(self, run_id: str) -> str:
        """What its metrics do; of a run that is over it is read once."""
        story = self.stories[run_id]
        if self._course is None or not story.attempt:
            return ""
        known = self._courses.get(run_id)
        if known is None or known[0].state not in OVER:
            self._courses[run_id] = known = (story, self._course(RunDir(self.runs / run_id), story))
        return known[1]


class _Lines:
    """Plain lines: one for each change of state."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.before: dict[str, str] = {}

    def __enter__(self) -> Callable[[Watched], None]:
        return self.show

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, watched: Watched) -> None:
        for run_id, story in watched.stories.items():
            if self.before.get(run_id) != story.state and story.state != "queued":
                why = f" ({story.cause})" if story.cause else ""
                step = f" at step {story.step}" if story.step else ""
                self.say(f"{run_id}: {story.state}{step}{why}")
            self.before[run_id] = story.state


class _Live:
    """A table that is drawn anew, with a line of counts under it."""

    def __enter__(self) -> Callable[[Watched], None]:
        from rich.console import Console
        from rich.live import Live

        self.live: Any = Live(console=Console(stderr=True), refresh_per_second=4)
        self.live.__enter__()
        return self.show

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)

    def show(self, watched: Watched) -> None:
        self.live.update(state_table(watched, self.live.console.width))


#: Which column is the curve; those before it are numbers and names.
_COURSE = 5
#: Those that are at work first, then those that want a person's attention.
_ORDER = ("running", "stopping", "requeued", "failed", "cancelled", "queued", "completed")


def state_table(watched: Watched, width: int) -> Any:
    """A rich table of runs, those that are at work first, and the counts of all."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    stories = watched.stories
    ranked = sorted(stories.items(), key=lambda item: _ORDER.index(item[1].state))
    rows = [_row(watched, run_id, story) for run_id, story in ranked[:_SHOWN_RUNS]]
    names = ["run", "state", "attempt", "step", "left", "course", "why"]
    widths = [max(len(name), *(len(row[column]) for row in rows)) for column, name in enumerate(names)]
    room = width - sum(widths[:_COURSE]) - 2 * len(widths)
    # What does not fit is cut from the curve and from the reason, never from the numbers.
    widths[-1] = min(widths[-1], max(8, room - widths[_COURSE]))
    widths[_COURSE] = min(widths[_COURSE], room - widths[-1])
    rows = [(*row[:_COURSE], _shortened(row[_COURSE], widths[_COURSE]), row[-1]) for row in rows]
    if not any(row[_COURSE] for row in rows):
        names, widths, rows = (
            names[:_COURSE] + names[-1:],
            widths[:_COURSE] + widths[-1:],
            [row[:_COURSE] + row[-1:] for row in rows],
        )
    counts = [f"{number} {state}" for state, number in _counts(stories).items()]
    counts += [f"{len(ranked) - len(rows)} not shown"] if len(ranked) > len(rows) else []
    caption = "\n".join(filter(None, (" · ".join(counts), QUEUE.problem)))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = Text(caption, "table.caption"), "left"
    for name, column_width in zip(names, widths, strict=True):
        right: Any = "right" if name in ("attempt", "step", "left") else "left"
        table.add_column(name, justify=right, width=column_width, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(Text, row))  # brackets in a cause are no markup
    return table


def _shortened(course: str, width: int) -> str:
    """A metric's name, curve and value in so many characters: the curve loses its beginning, then goes, then all."""
    if len(course) <= width:
        return course
    name, _, rest = course.partition(" ")
    curve, _, value = rest.rpartition(" ")
    room = width - len(name) - len(value) - 2
    short = f"{name} {curve[-room:]} {value}" if room > 0 else f"{name} {value}"
    return short if len(short) <= width else ""


def _row(watched: Watched, run_id: str, story: Story) -> tuple[str, ...]:
    how_far = watched.progress(run_id)
    why = " ".join(story.cause.split())
    numbers = (str(story.attempt or ""), str(how_far), duration_text(how_far.eta_s))
    return (run_id, story.state, *numbers, watched.course(run_id), why)


def _counts(stories: dict[str, Story]) -> dict[str, int]:
    found = Counter(story.state for story in stories.values())
    return {state: found[state] for state in _ORDER if found[state]}


def _shown(say: Callable[[str], None]) -> _Lines | _Live:
    return _Live() if sys.stderr.isatty() else _Lines(say)
