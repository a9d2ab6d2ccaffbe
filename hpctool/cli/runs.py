"""`hpctool runs`: what ran, what came of it, and where it came from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hpctool import files
from hpctool.cli import runs_control, runs_export
from hpctool.cli.output import json_option, paths_option, print_json, resolve_paths, say, say_if_slurm_is_silent
from hpctool.cli.report import report
from hpctool.cli.runs_chosen import chosen_runs
from hpctool.errors import HpctoolError, InputError, UnknownName
from hpctool.rundir import STATES, RunDir, find_run


@click.group(name="runs")
def group() -> None:
    """What ran, runs and will run. A run is named by its id or any unique beginning of it."""


@group.command(name="list")
@click.argument("query", nargs=-1)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*STATES, "broken"]),
    help="Only runs in this state; may be said again for others.",
)
@click.option("--job", default="", help="Only runs of this job: train, evaluate …")
@click.option("--sweep", default="", metavar="SWEEP", help="Only the cells of this sweep, and what it varies.")
@click.option("--sort", "key", default="", metavar="COLUMN", help="Sort by it; -COLUMN puts the largest first.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Show no more than so many.")
@click.option("--cols", default="", metavar="A,B,…", help="Columns to show: fields, metrics, config keys.")
@click.option("--scan", is_flag=True, help="Read every folder, and not the index of runs that are over.")
@json_option
@paths_option
def list_command(
    query: tuple[str, ...],
    states: tuple[str, ...],
    job: str,
    sweep: str,
    key: str,
    limit: int | None,
    cols: str,
    scan: bool,
    as_json: bool,
    root: Path | None,
) -> None:
    """List runs, newest first, and the cells of sweeps that have not started.

    \b
    hpctool runs list --sort -val/accuracy --limit 10
    hpctool runs list --sweep train-1a2b --cols optim.lr,val/loss
    hpctool runs list 'state=completed optim.lr<1e-3 (model=cnn or model~vit*) not seed=3 age<7d'

    A QUERY's comparisons must all hold; = != < <= > >= and ~ (a pattern with *), or, not and brackets; min(val/loss),
    max(…) and at(val/loss,1000) look at a curve.
    """
    from hpctool.track import runs as track
    from hpctool.track.query import choose

    folder = resolve_paths(root).runs
    found = track.list_rows(folder, scan=scan)
    _say_problems(found)
    say_if_slurm_is_silent()
    rows = choose(track.select(found, states=states, job=job, sweep=sweep), " ".join(query))
    wanted = [name.strip() for name in cols.split(",") if name.strip()]
    track.check_columns(rows, wanted)
    rows = track.sort_rows(rows, key) if key else rows
    shown = rows[:limit]
    if as_json:
        print_json(
            [row.to_json() | {name: row.value(name) for name in wanted if name not in row.metrics} for row in shown]
        )
        return
    from hpctool.cli.runs_view import print_list

    if not found:
        say(f"There are no runs in {folder}.")
    else:
        print_list(shown, len(rows), wanted, sort=key.removeprefix("-"), by_sweep=bool(sweep))


@group.command()
@click.argument("run")
@json_option
@paths_option
def show(run: str, as_json: bool, root: Path | None) -> None:
    """Show one run: what it was asked, its attempts, checkpoints, metrics, and why it failed if it did."""
    from hpctool.track.detail import describe

    rundir = find_run(resolve_paths(root).runs, run)
    found = describe(rundir)
    found["url"] = _url(rundir) if found["state"] == "running" else None
    for problem in found["problems"]:
        say(f"hpctool: {problem}")
    say_if_slurm_is_silent()
    if as_json:
        print_json(found)
        return
    from hpctool.cli.runs_view import print_run

    print_run(found)


def _url(rundir: RunDir) -> str | None:
    """Where a server answers."""
    from hpctool.serve.schema import ENDPOINT

    try:
        body = files.read_json(rundir.path / "artifacts" / ENDPOINT)
    except (OSError, HpctoolError):
        return None
    return f"{body['url']}/v2/models/{str(body['model']).partition('@')[0]}"


@group.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...|QUERY")
@json_option
@paths_option
def compare(runs: tuple[str, ...], as_json: bool, root: Path | None) -> None:
    """Compare runs: only what differs, metrics side by side, seeds in groups.

    For two runs also the first step at which they part.

    \b
    hpctool runs compare train-1a2b train-3c4d
    hpctool runs compare 'sweep=train-5eee model=cnn val/accuracy>0.9'
    """
    from hpctool.track.compare import compare as compare_runs

    chosen = chosen_runs(resolve_paths(root).runs, runs)
    if len(chosen) < 2:
        raise InputError(f"Comparing takes two runs or more, and '{' '.join(runs)}' is {len(chosen)}. Name another.")
    comparison = compare_runs(chosen)
    if as_json:
        print_json(comparison.to_json())
        return
    from hpctool.cli.runs_view import print_comparison

    print_comparison(comparison)


@group.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--attempt", type=click.IntRange(min=1), default=None, help="An earlier attempt than the newest.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the run ends.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=None, help="Only the last so many lines.")
@paths_option
def logs(run: str, rank: int, attempt: int | None, follow: bool, lines: int | None, root: Path | None) -> None:
    """Print what a rank of a run has said."""
    from hpctool.track import logs as track

    runs = resolve_paths(root).runs
    try:
        rundir = find_run(runs, run)
    except UnknownName:
        path = _log_of_cell(runs, run)
        if path is None:
            raise
        pieces = track.read(path, lines)
    else:
        if follow:
            pieces = track.follow(rundir, rank, attempt, lines, say=say)
        else:
            pieces = track.read(track.log_path(rundir, rank, attempt), lines)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _log_of_cell(runs: Path, name: str) -> Path | None:
    """What the job of a cell said that has no folder; None if there is no such cell. Raises UnknownName."""
    from hpctool.launch import overview
    from hpctool.track.logs import early_log

    found = overview.find_cell(runs, name)
    if found is None:
        return None
    sweep, index = found
    rundir, story = RunDir(runs / sweep.run_ids[index]), overview.unbegun(runs, sweep, [index])[index]
    path = early_log(rundir, story.slurm_job_id, sweep=sweep.id)
    if path is None:
        why = f" ({story.cause})" if story.cause else ""
        raise UnknownName("log of", rundir.id, [], f"It is a cell of {sweep.id} and {story.state}{why}.")
    say(f"{rundir.id} is {story.state} ({story.cause}); what its job said ({path}):")
    return path


@group.command()
@click.argument("name")
@json_option
@paths_option
def lineage(name: str, as_json: bool, root: Path | None) -> None:
    """Trace a run, a model (digits@production, digits@0003) or a dataset back to code, config and data."""
    from hpctool.cli.lineage import print_tree, trace

    node = trace(resolve_paths(root), name)
    if as_json:
        print_json(node.to_json())
    else:
        print_tree(node)


group.add_command(report)
group.add_command(runs_export.export)
group.add_command(runs_export.tensorboard)
group.add_command(runs_control.cancel)
group.add_command(runs_control.retry)
group.add_command(runs_control.watch)
group.add_command(runs_control.shell)
group.add_command(runs_control.stacks)


def _say_problems(rows: list[Any]) -> None:
    """Say on stderr what could not be read; a table is the wrong place for sentences."""
    for row in rows:
        for problem in row.problems:
            say(f"hpctool: run {row.id}: {problem}")
