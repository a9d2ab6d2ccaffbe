"""`hpctool runs cancel | retry | watch`: what changes a run, and what shows it changing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpctool.cli.output import paths_option, resolve_paths, say
from hpctool.errors import EXIT_DONE, UnknownName
from hpctool.rundir import RunDir, find_run, list_run_ids

if TYPE_CHECKING:
    from hpctool.launch.cells import Sweep


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN|SWEEP...")
@paths_option
def cancel(names: tuple[str, ...], root: Path | None) -> None:
    """End runs for good: what runs saves if it can, what waits is dropped, nothing is requeued."""
    from hpctool.launch import local, start
    from hpctool.launch.result import current_story
    from hpctool.launch.wait import ENDED

    runs = resolve_paths(root).runs
    for name in names:
        full, ids = _found(runs, name)
        if full not in ids and local.cancel(runs, full):
            say(f"sweep {full}: what waits is dropped, what runs is told to stop and saves if it can.")
            continue
        for rundir in (RunDir(runs / run_id) for run_id in ids):
            # A sweep's cells that have ended are left alone; a run that was named and has ended is an error.
            if full in ids or (rundir.run_json.exists() and current_story(rundir).state not in ENDED):
                say(start.cancel(rundir))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN|SWEEP...")
@paths_option
def retry(names: tuple[str, ...], root: Path | None) -> None:
    """Start failed and cancelled runs once more; they go on from their newest checkpoint."""
    from hpctool.launch import start
    from hpctool.launch.result import current_story

    runs = resolve_paths(root).runs
    codes = []
    for name in names:
        full, ids = _found(runs, name)
        rundirs = [RunDir(runs / run_id) for run_id in ids]
        if full not in ids:
            rundirs = [r for r in rundirs if r.run_json.exists() and current_story(r).state in ("failed", "cancelled")]
            say(f"{len(rundirs)} of {len(ids)} cells of {full} have failed or were cancelled.")
        codes += [start.retry(rundir, say) for rundir in rundirs]
    if code := next((code for code in codes if code != EXIT_DONE), EXIT_DONE):
        raise SystemExit(code)


@click.command()
@click.argument("names", nargs=-1, metavar="[RUN|SWEEP...]")
@paths_option
def watch(names: tuple[str, ...], root: Path | None) -> None:
    """Watch runs until they have ended; without names, those that have not ended now."""
    from hpctool.launch import cells
    from hpctool.launch.wait import wait_for

    runs = resolve_paths(root).runs
    sweeps = [cells.find_sweep(runs, sweep_id) for sweep_id in cells.list_sweep_ids(runs)]
    ids = [run_id for name in names for run_id in _found(runs, name)[1]] if names else _underway(runs, sweeps)
    if not ids:
        say("Nothing runs and nothing waits.")
        return
    if code := wait_for(runs, ids, say, sweeps):
        raise SystemExit(code)


def _underway(runs: Path, sweeps: list[Sweep]) -> list[str]:
    """The runs that have not ended, and the cells that wait."""
    from hpctool.launch.overview import quick_stories, unbegun
    from hpctool.launch.wait import ENDED

    ids = list_run_ids(runs)
    stories = quick_stories([RunDir(runs / run_id) for run_id in ids])
    open_ = [run_id for run_id, story in zip(ids, stories, strict=True) if story.state not in ENDED]
    there = set(ids)
    for sweep in sweeps:
        waiting = unbegun(runs, sweep, [i for i, run_id in enumerate(sweep.run_ids) if run_id not in there])
        open_ += [sweep.run_ids[i] for i, story in waiting.items() if story.state == "queued" and story.entries]
    return open_


def _found(runs: Path, name: str) -> tuple[str, list[str]]:
    """The full id that a name means, and the runs behind it: itself, or a sweep's cells. Raises UnknownName."""
    from hpctool.launch import cells

    try:
        run_id = find_run(runs, name).id
        return run_id, [run_id]
    except UnknownName:
        if not any(sweep.startswith(name) for sweep in cells.list_sweep_ids(runs)):
            raise
    sweep = cells.find_sweep(runs, name)
    return sweep.id, sweep.run_ids
