"""`hpctool sweep watch`: a search or a sweep, as it goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpctool.cli.output import cell_text, paths_option, resolve_paths, say
from hpctool.errors import EXIT_FAILED

if TYPE_CHECKING:
    from hpctool.launch.cells import Sweep
    from hpctool.search.overview import Looked

_POLL_S = 1.0
#: Looking at ten thousand trials takes a while: most of the time is spent waiting all the same.
_REST = 4.0


@click.command()
@click.argument("sweep")
@paths_option
def watch(sweep: str, root: Path | None) -> None:
    """Watch a sweep until it has ended: rungs, the best so far, the budget, workers, and what trains now.

    Leaving (Ctrl-C) ends nothing but the watching. In a log it is one line for each trial that changes.
    """
    from hpctool.launch import cells
    from hpctool.launch.wait import wait_for
    from hpctool.search.spec import is_search
    from hpctool.track.sparkline import course

    runs = resolve_paths(root).runs
    found = cells.find_sweep(runs, sweep)
    code = _watch(runs, found) if is_search(found.path) else wait_for(runs, found.run_ids, say, [found], course)
    if code:
        raise SystemExit(code)


def _watch(runs: Path, sweep: Sweep) -> int:
    """Until no worker will do anything more; 1 where there is no answer."""
    from hpctool.launch import local
    from hpctool.search.journal import Journal
    from hpctool.search.overview import look_into
    from hpctool.search.spec import read_spec

    journal = Journal(sweep.path, read_spec(sweep.path))
    shown = _Live(runs) if sys.stderr.isatty() else _Lines()
    with shown:
        while True:
            began_s = time.monotonic()
            found = look_into(runs, sweep, journal)
            shown.show(found)
            if _is_over(found):
                return 0 if found.state.has_answer else EXIT_FAILED
            local.ensure_running(runs)
            time.sleep(max(_POLL_S, _REST * (time.monotonic() - began_s)))


def _is_over(found: Looked) -> bool:
    from hpctool.rundir import UNDERWAY

    return not any(state in UNDERWAY for state in found.workers)


class _Live:
    """The whole view, drawn anew."""

    def __init__(self, runs: Path) -> None:
        from rich.live import Live

        from hpctool.cli.output import console

        self.runs = runs
        self.live = Live(console=console(stderr=True), auto_refresh=False)

    def __enter__(self) -> None:
        self.live.__enter__()

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(None, None, None)

    def show(self, found: Looked) -> None:
        from hpctool.cli.search_view import live

        self.live.update(live(found, self.runs, self.live.console.width), refresh=True)


class _Lines:
    """Plain lines: one for each trial that has come further, and one for each new best."""

    def __init__(self) -> None:
        self.before: dict[int, tuple[str, int]] = {}
        self.best: tuple[int, int] | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, found: Looked) -> None:
        from hpctool.cli.tables import settings_text

        metric = found.state.spec.metric
        for cell in found.cells:
            trial = found.state.trials[cell.index]
            now = (cell.state, trial.reached)
            if self.before.get(cell.index) != now:
                value = f", {metric} {cell_text(cell.metrics[metric])}" if cell.metrics else ""
                why = f" ({' '.join(cell.cause.split())})" if cell.cause else ""
                say(f"trial {cell.index}: {cell.state}{f' at step {cell.step}' if cell.step else ''}{value}{why}")
            self.before[cell.index] = now
        if found.ranked:
            best = found.ranked[0]
            key = (best.index, found.state.trials[best.index].reached)
            if key != self.best:
                value, settings = cell_text(best.metrics[metric]), settings_text(best.values)
                say(f"best: trial {best.index}, {metric} {value}, {settings}")
            self.best = key
