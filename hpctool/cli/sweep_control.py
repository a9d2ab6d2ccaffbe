"""`hpctool sweep resume | retry | cancel`: what changes a sweep that is there."""

from __future__ import annotations

from pathlib import Path

import click

from hpctool.cli.output import paths_option, resolve_paths, say

_code_now = click.option("--code-now", is_flag=True, help="With the code as it is now, not as it was submitted.")


@click.command()
@click.argument("sweep")
@click.option("--max-trials", type=click.IntRange(min=1), help="Of a search: so many trials in all.")
@click.option("--gpu-hours", type=click.FloatRange(min=0, min_open=True), help="Of a search: so many in all.")
@click.option("--workers", type=click.IntRange(min=1), help="Of a search: so many at once, more than before.")
@_code_now
@paths_option
def resume(
    sweep: str,
    max_trials: int | None,
    gpu_hours: float | None,
    workers: int | None,
    code_now: bool,
    root: Path | None,
) -> None:
    """Start what is left of a sweep: every cell that is neither done nor under way nor queued.

    A search goes on, with another budget or more workers if these are given.
    """
    _start(sweep, root, (), code_now, max_trials, gpu_hours, workers)


@click.command()
@click.argument("sweep")
@_code_now
@paths_option
def retry(sweep: str, code_now: bool, root: Path | None) -> None:
    """Start the failed cells of a sweep once more; they go on from their newest checkpoints."""
    _start(sweep, root, ("failed",), code_now)


@click.command()
@click.argument("sweep")
@paths_option
def cancel(sweep: str, root: Path | None) -> None:
    """End a sweep for good: what waits does not begin, what runs saves if it can."""
    from hpctool.launch import cells, sweeps
    from hpctool.search import control, spec

    runs = resolve_paths(root).runs.absolute()
    found = cells.find_sweep(runs, sweep)
    if spec.is_search(found.path):
        control.cancel(runs, found.id, say)
    else:
        sweeps.cancel(found, runs, say)


def _start(
    sweep: str,
    root: Path | None,
    states: tuple[str, ...],
    code_now: bool,
    max_trials: int | None = None,
    gpu_hours: float | None = None,
    workers: int | None = None,
) -> None:
    from hpctool.errors import InputError
    from hpctool.launch import cells, sweeps
    from hpctool.search import control, spec

    runs = resolve_paths(root).runs.absolute()
    found = cells.find_sweep(runs, sweep)
    if spec.is_search(found.path):
        if states:
            code = control.retry(runs, found.id, say)
        else:
            code = control.resume_with(runs, found.id, say, max_trials, gpu_hours, workers, code_now=code_now)
    elif max_trials or gpu_hours or workers:
        raise InputError(f"{found.id} is a grid of cells; only a search has a budget and workers.")
    else:
        code = sweeps.resume(found, runs, say, states=states, code_now=code_now)
    if code:
        raise SystemExit(code)
