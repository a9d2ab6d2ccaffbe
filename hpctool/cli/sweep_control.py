"""`hpctool sweep resume | retry | cancel`: what changes a sweep that is there."""

from __future__ import annotations

from pathlib import Path

import click

from hpctool.cli.output import paths_option, resolve_paths, say

_code_now = click.option("--code-now", is_flag=True, help="With the code as it is now, not as it was submitted.")


@click.command()
@click.argument("sweep")
@_code_now
@paths_option
def resume(sweep: str, code_now: bool, root: Path | None) -> None:
    """Start what is left of a sweep: every cell that is neither done nor under way nor queued."""
    _start(sweep, root, (), code_now)


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

    runs = resolve_paths(root).runs.absolute()
    sweeps.cancel(cells.find_sweep(runs, sweep), runs, say)


def _start(sweep: str, root: Path | None, states: tuple[str, ...], code_now: bool) -> None:
    from hpctool.launch import cells, sweeps

    runs = resolve_paths(root).runs.absolute()
    if code := sweeps.resume(cells.find_sweep(runs, sweep), runs, say, states=states, code_now=code_now):
        raise SystemExit(code)
