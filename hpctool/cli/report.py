"""`hpctool runs report`: many runs as one page that opens anywhere."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from hpctool.cli.output import json_option, paths_option, print_json, resolve_paths, say
from hpctool.errors import InputError


@click.command()
@click.argument("query", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("report.html"), show_default=True)
@click.option("--metric", default="", help="Which run is best; else the most telling one.")
@click.option("--title", default="")
@json_option
@paths_option
def report(query: tuple[str, ...], out: Path, metric: str, title: str, as_json: bool, root: Path | None) -> None:
    """Write one HTML file about the runs that fit a QUERY: table, curves, cost, what mattered, what failed.

    \b
    hpctool runs report 'sweep=train-1a2b' --metric val/accuracy
    hpctool runs report 'job=train age<7d' --out week.html
    """
    from hpctool.track import runs as track
    from hpctool.track.query import choose

    folder = resolve_paths(root).runs
    text = " ".join(query)
    rows = choose(track.list_rows(folder), text)
    write_report(rows, out, text or "all", metric, title or (f"Runs: {text}" if text else f"Runs in {folder}"), as_json)


def write_report(
    rows: list[Any],
    out: Path,
    query: str,
    metric: str,
    title: str,
    as_json: bool,
    sections: list[dict[str, Any]] | None = None,
) -> None:
    """Write the page, or print its numbers. Raises InputError where there are no runs, UnknownName for the metric."""
    from hpctool import files
    from hpctool.track import report as track
    from hpctool.track.runs import check_columns

    if not rows:
        raise InputError(f"No runs fit '{query}', so there is nothing to report. See: hpctool runs list")
    check_columns(rows, [metric] if metric else [])
    data = track.build(rows, track.Asked(title, shlex.join(["hpctool", *sys.argv[1:]]), metric, sections or []))
    if as_json:
        print_json(data)
        return
    page = track.render(data)
    files.write_atomic(out, page)
    say(f"{len(rows)} run{'s' if len(rows) != 1 else ''} in {out} ({len(page.encode()) / 1e6:.2g} MB).")


def search_sections(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What the report of a search has beside its trials, from `sweep status --json`: rungs and budget."""
    if not told.get("search"):
        return []
    rungs, budget = told["rungs"], told["budget"]
    most = max((rung["trials"] for rung in rungs), default=0) or 1
    bars = [
        {
            "key": f"to step {rung['step']}" if rung["step"] is not None else "to the end",
            "share": rung["trials"] / most,
            "text": f"{rung['trials']} trials, best {rung['best']:.4g}" if isinstance(rung["best"], float) else "none",
            "about": f"{rung['went_on']} went on",
        }
        for rung in rungs
    ]
    words = f"{budget['used']:.3g} {budget['unit']} used"
    words += f" of {budget['limit']:.3g}" if budget["limit"] else ""
    words += f"; training every trial to its end would have cost {budget['saved']:.3g} more" if budget["saved"] else ""
    stopped = f" It stopped: {told['stopped']}." if told["stopped"] else ""
    return [{"title": "Rungs: how far trials were trained", "sentences": [f"{words}.{stopped}"], "bars": bars}]
