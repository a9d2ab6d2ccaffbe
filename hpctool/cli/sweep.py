"""`hpctool sweep`: many runs that were asked for at once."""

from __future__ import annotations

from pathlib import Path

import click

from hpctool.cli import search, search_watch, sweep_control
from hpctool.cli.output import json_option, paths_option, print_json, resolve_paths, say, say_if_slurm_is_silent


@click.group(name="sweep")
def group() -> None:
    """Sweeps: many runs that were asked for at once; a search is a sweep that chooses its cells itself."""


@group.command("list")
@paths_option
@json_option
def list_sweeps(root: Path | None, as_json: bool) -> None:
    """All sweeps, with how many of their cells have come how far."""
    from hpctool.launch import cells
    from hpctool.search import overview as sweeps

    runs = resolve_paths(root).runs
    found = [sweeps.look(runs, cells.find_sweep(runs, sweep_id)) for sweep_id in cells.list_sweep_ids(runs)]
    found.sort(key=lambda one: str(one.sweep.body["created"]), reverse=True)
    if as_json:
        print_json([one.to_json() for one in found])
    elif found:
        from hpctool.cli.sweep_view import print_list

        print_list(found)
    else:
        say(f"There are no sweeps in {runs}.")
    say_if_slurm_is_silent()


@group.command()
@click.argument("sweep")
@click.option("--cells", "all_cells", is_flag=True, help="Show every cell, however many there are.")
@paths_option
@json_option
def status(sweep: str, all_cells: bool, root: Path | None, as_json: bool) -> None:
    """How far one sweep is, why cells wait or failed, which is best, when it will be done, what it cost."""
    from hpctool.launch import cells
    from hpctool.search import overview as sweeps

    runs = resolve_paths(root).runs
    found = sweeps.look(runs, cells.find_sweep(runs, sweep))
    if as_json:
        print_json(found.to_json() | {"rows": [cell.to_json() for cell in found.cells]})
    elif isinstance(found, sweeps.Looked):
        from hpctool.cli.search_view import print_search

        print_search(found, all_cells)
    else:
        from hpctool.cli.sweep_view import print_status

        print_status(found, all_cells)
    say_if_slurm_is_silent()


@group.command()
@click.argument("sweep")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Write a page instead.")
@paths_option
@json_option
def report(sweep: str, html: Path | None, root: Path | None, as_json: bool) -> None:
    """What each value of each varied key came to: its cells, their metric, GPU- and CPU-hours."""
    from hpctool.cli.sweep_view import axes, axis_row, print_report
    from hpctool.launch import cells
    from hpctool.search import overview as sweeps

    runs = resolve_paths(root).runs
    found = sweeps.look(runs, cells.find_sweep(runs, sweep))
    if html is not None:
        from hpctool.cli.report import search_sections, write_report
        from hpctool.track.runs import list_rows

        mine = {cell.run: cell for cell in found.cells}
        rows_of_it = [one for one in list_rows(runs) if one.id in mine]
        for one in rows_of_it:
            # A trial that is paused is no run that was cancelled.
            one.state, one.cause = mine[one.id].state, mine[one.id].cause
        title, sections = f"Sweep {found.sweep.id}", search_sections(found.to_json())
        write_report(rows_of_it, html, f"sweep={found.sweep.id}", found.metric[0], title, as_json, sections)
        return
    if as_json:
        rows = {
            key: {value: axis_row(those, *found.metric) for value, those in values.items()}
            for key, values in axes(found).items()
        }
        for row in (row for values in rows.values() for row in values.values()):
            row["hours"] = row["hours"].to_json()
        print_json(found.to_json() | {"axes": rows})
    else:
        print_report(found)
    say_if_slurm_is_silent()


group.add_command(search_watch.watch)
group.add_command(sweep_control.resume)
group.add_command(sweep_control.retry)
group.add_command(sweep_control.cancel)
group.add_command(search.verify)
group.add_command(search.export)
