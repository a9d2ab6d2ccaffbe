"""`hpctool runs cancel | retry | watch | shell | stacks`: what changes a run, shows it changing, or looks into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpctool.cli.output import json_option, paths_option, print_json, resolve_paths, say
from hpctool.errors import EXIT_DONE, InputError, UnknownName
from hpctool.rundir import OVER, RunDir, find_run, list_run_ids

if TYPE_CHECKING:
    from hpctool.launch.cells import Sweep


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN|SWEEP...")
@paths_option
def cancel(names: tuple[str, ...], root: Path | None) -> None:
    """End runs for good: what runs saves if it can, what waits is dropped, nothing is requeued."""
    from hpctool.launch import cells, overview, start, sweeps

    runs = resolve_paths(root).runs.absolute()
    for name in names:
        full, ids = _found(runs, name)
        if full in ids:
            cell = overview.find_cell(runs, full)
            how = sweeps.cancel_cell(cell[0], runs, cell[1]) if cell else None
            say(how or start.cancel(RunDir(runs / full)))
        else:
            sweeps.cancel(cells.find_sweep(runs, full), runs, say)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN|SWEEP...")
@paths_option
def retry(names: tuple[str, ...], root: Path | None) -> None:
    """Start failed and cancelled runs once more; they go on from their newest checkpoint."""
    from hpctool.launch import cells, start, sweeps

    runs = resolve_paths(root).runs.absolute()
    codes = []
    for name in names:
        full, ids = _found(runs, name)
        if full in ids and not RunDir(runs / full).run_json.exists():
            raise InputError(f"Run {full} is a cell that has not begun. hpctool sweep resume starts what is left.")
        if full in ids:
            codes.append(start.retry(RunDir(runs / full), say))
        else:
            codes.append(sweeps.resume(cells.find_sweep(runs, full), runs, say, states=("failed", "cancelled")))
    if code := next((code for code in codes if code != EXIT_DONE), EXIT_DONE):
        raise SystemExit(code)


@click.command()
@click.argument("names", nargs=-1, metavar="[RUN|SWEEP...]")
@paths_option
def watch(names: tuple[str, ...], root: Path | None) -> None:
    """Watch runs until they have ended; without names, those that have not ended now."""
    from hpctool.launch import cells
    from hpctool.launch.wait import wait_for
    from hpctool.track.sparkline import course

    runs = resolve_paths(root).runs
    sweeps = [cells.find_sweep(runs, sweep_id) for sweep_id in cells.list_sweep_ids(runs)]
    ids = [run_id for name in names for run_id in _found(runs, name)[1]] if names else _underway(runs, sweeps)
    if not ids:
        say("Nothing runs and nothing waits.")
        return
    if code := wait_for(runs, ids, say, sweeps, course):
        raise SystemExit(code)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("run")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
@paths_option
def shell(run: str, command: tuple[str, ...], rank: int, root: Path | None) -> None:
    """A shell beside a running rank: its node, folder and environment. With a COMMAND, that instead.

    \b
    hpctool runs shell train-1a2b --rank 2
    hpctool runs shell train-1a2b nvidia-smi
    """
    from hpctool.launch.slurm import beside

    beside.shell(find_run(resolve_paths(root).runs, run), rank, command)


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), default=None, help="Only this rank.")
@json_option
@paths_option
def stacks(run: str, rank: int | None, as_json: bool, root: Path | None) -> None:
    """Print where each rank of a run is in its Python code, also while it hangs; it runs on meanwhile."""
    from hpctool.launch.slurm import beside

    rundir = find_run(resolve_paths(root).runs, run)
    found = beside.stacks(rundir, rank)
    if rundir.record()["job"] == "run":
        say("These are hpctool's own ranks; the program is a process of its own below each, which is not asked.")
    if as_json:
        print_json([vars(one) for one in found])
        return
    for one in found:
        if one.problem:
            say(f"rank {one.rank}: {one.problem}")
        else:
            click.echo(f"rank {one.rank}:\n{one.text}\n")


def _underway(runs: Path, sweeps: list[Sweep]) -> list[str]:
    """The runs that have not ended, and the cells that wait."""
    from hpctool.launch.overview import quick_stories, unbegun

    ids = list_run_ids(runs)
    stories = quick_stories([RunDir(runs / run_id) for run_id in ids])
    open_ = [run_id for run_id, story in zip(ids, stories, strict=True) if story.state not in OVER]
    there = set(ids)
    for sweep in sweeps:
        waiting = unbegun(runs, sweep, [i for i, run_id in enumerate(sweep.run_ids) if run_id not in there])
        open_ += [sweep.run_ids[i] for i, story in waiting.items() if story.state == "queued" and story.entries]
    return open_


def _found(runs: Path, name: str) -> tuple[str, list[str]]:
    """The full id that a name means, and the runs behind it: itself, or a sweep's cells. Raises UnknownName."""
    from hpctool.launch import cells, overview

    try:
        run_id = find_run(runs, name).id
        return run_id, [run_id]
    except UnknownName:
        if waiting := overview.find_cell(runs, name):
            run_id = waiting[0].run_ids[waiting[1]]
            return run_id, [run_id]
        if not any(sweep.startswith(name) for sweep in cells.list_sweep_ids(runs)):
            raise
    sweep = cells.find_sweep(runs, name)
    return sweep.id, sweep.run_ids
