"""`hpctool sweep`: many runs that were asked for at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from hpctool.cli.output import json_option, paths_option, print_json, print_table, resolve_paths, say
from hpctool.launch import cells
from hpctool.launch.result import current_story
from hpctool.rundir import RunDir, Story


@click.group(name="sweep", help=__doc__)
def group() -> None:
    """Sweeps: list, status."""


@group.command("list")
@paths_option
@json_option
def list_sweeps(root: Path | None, as_json: bool) -> None:
    """All sweeps, with how many of their cells have come how far."""
    runs = resolve_paths(root).runs
    rows = [_row(cells.find_sweep(runs, sweep_id), runs) for sweep_id in cells.list_sweep_ids(runs)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["sweep", "job", "cells", "states", "varied", "created"],
        [[r["id"], r["job"], r["cells"], _counts(r["states"]), ", ".join(r["varied"]), r["created"]] for r in rows],
        title="Sweeps",
    )


@group.command()
@click.argument("sweep")
@paths_option
@json_option
def status(sweep: str, root: Path | None, as_json: bool) -> None:
    """The cells of one sweep: what varies, how far each has come, and why it ended."""
    runs = resolve_paths(root).runs
    found = cells.find_sweep(runs, sweep)
    stories = {run_id: current_story(RunDir(runs / run_id)) for run_id in found.run_ids}
    rows = [_cell(cell, found, RunDir(runs / cell["run"]), stories[cell["run"]]) for cell in found.body["cells"]]
    if as_json:
        print_json({**_row(found, runs), "rows": rows})
        return
    varied = found.body["varied"]
    names = sorted({name for row in rows for name in row["metrics"] if name.startswith("val/")})
    print_table(
        ["run", *varied, "state", "step", *names, "cause"],
        [
            [r["run"], *(r["values"].get(k, "") for k in varied), r["state"], r["step"] or None]
            + [r["metrics"].get(name) for name in names]
            + [r["cause"]]
            for r in rows
        ],
        title=f"Sweep {found.id}",
    )
    say(_counts(dict(Counter(row["state"] for row in rows))))


def _row(sweep: cells.Sweep, runs: Path) -> dict[str, Any]:
    states = Counter(current_story(RunDir(runs / run_id)).state for run_id in sweep.run_ids)
    body = sweep.body
    return {"id": sweep.id, "job": body["job"], "cells": len(body["cells"]), "states": dict(states)} | {
        "varied": body["varied"],
        "created": body["created"],
        "folder": str(sweep.path),
    }


def _cell(cell: dict[str, Any], sweep: cells.Sweep, rundir: RunDir, story: Story) -> dict[str, Any]:
    values = dict(text.lstrip("+").split("=", 1) for text in cell["overrides"] if "=" in text)
    return {
        "index": cell["index"],
        "run": cell["run"],
        "state": story.state,
        "cause": story.cause,
        "attempts": story.attempt,
        "step": story.step,
        "values": {key: values[key] for key in sweep.body["varied"] if key in values},
        "metrics": (rundir.result() or {}).get("metrics", {}),
    }


def _counts(states: dict[str, int]) -> str:
    return " · ".join(f"{number} {state}" for state, number in sorted(states.items()))
