"""`hpctool sweep verify | export`: what only a search has."""

from __future__ import annotations

from pathlib import Path

import click

from hpctool.cli.output import json_option, paths_option, print_json, resolve_paths, say
from hpctool.errors import counted


@click.command()
@click.argument("sweep")
@paths_option
@json_option
def verify(sweep: str, root: Path | None, as_json: bool) -> None:
    """Decide once more: every proposal and promotion of a search, from what was known when it was made."""
    from hpctool.search import verify as checking

    found = checking.verify(_folder(sweep, root))
    if as_json:
        print_json(found.to_json())
    else:
        for text in found.notes:
            say(text)
        for name, why in found.broken.items():
            say(f"entry {name} cannot be used: {why}")
        for text in found.different:
            say(text)
        click.echo(
            f"{counted(found.num_proposals, 'proposal')} and {counted(found.num_promotions, 'promotion')} made again: "
            f"{len(found.different) or 'none'} come{'s' if len(found.different) <= 1 else ''} out otherwise."
        )
    if found.different:
        raise SystemExit(1)


@click.command()
@click.argument("sweep")
@click.option("--optuna", "target", type=click.Path(path_type=Path), required=True, help="A new SQLite file.")
@paths_option
def export(sweep: str, target: Path, root: Path | None) -> None:
    """Write a search for optuna-dashboard: optuna-dashboard sqlite:///FILE."""
    from hpctool.search.export import to_optuna

    number = to_optuna(_folder(sweep, root), target)
    say(f"{number} trials in {target}. optuna-dashboard sqlite:///{target}")


def _folder(sweep: str, root: Path | None) -> Path:
    """The folder of a search. Raises InputError where it is a grid of cells."""
    from hpctool.errors import InputError
    from hpctool.launch import cells
    from hpctool.search.spec import is_search

    found = cells.find_sweep(resolve_paths(root).runs, sweep)
    if not is_search(found.path):
        raise InputError(f"{found.id} is a grid of cells, in which nothing was decided; this is for searches.")
    return found.path
