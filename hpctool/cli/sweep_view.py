"""How sweeps look in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from hpctool.cli.output import cell_text, distinct_texts, full_text, say
from hpctool.cli.tables import Column, age_text, print_columns, print_whole, settings_text, state_text
from hpctool.launch.progress import duration_text
from hpctool.track.hours import Hours
from hpctool.track.metrics import mean_and_sd
from hpctool.track.sweeps import Cell, Overview, ranges

#: A sweep of so many cells is shown whole; of a larger one the best.
WHOLE = 40
_NUM_BEST = 10
_NUM_GROUPS = 12
_NUM_METRICS = 3
#: what waits for a shorter time has only just been submitted
_WAITS_S = 60.0
#: of cells, and of the trials of a search
_ORDER = (
    *("completed", "running", "stopping", "requeued", "queued", "paused"),
    *("failed", "cancelled", "stopped", "infeasible"),
)


def print_list(overviews: Sequence[Overview]) -> None:
    """Print sweeps, one a line."""
    columns = [
        Column("sweep", [one.sweep.id for one in overviews]),
        Column("job", [one.sweep.body["job"] for one in overviews], rank=3),
        Column("cells", [len(one.cells) for one in overviews]),
        Column("states", [_counts(one) for one in overviews]),
        Column("best", [_best_value(one) for one in overviews], rank=1),
        Column("varied", [", ".join(one.sweep.body["varied"]) for one in overviews], rank=2, min_width=16, style="dim"),
        Column("age", [age_text(one.sweep.body["created"]) for one in overviews], style="dim"),
    ]
    print_columns(columns)


def print_status(found: Overview, all_cells: bool) -> None:
    """Print how a sweep stands: counts, what is to come, the best cell, the cost, causes, and its cells."""
    body = found.sweep.body
    varied = ", ".join(body["varied"]) or "nothing"
    num_cells = f"{len(found.cells)} cell{'s' if len(found.cells) != 1 else ''}"
    print_whole(Text.assemble((found.sweep.id, "bold"), f"  {body['job']}, {num_cells} over {varied}"))
    print_whole(Text(f"  {_counts(found)}"))
    for line in (waits_text(found), _time_left(found), _best(found), hours_text(found.hours)):
        if line:
            print_whole(Text(f"  {line}"))
    _print_groups(found)
    if all_cells or len(found.cells) <= WHOLE:
        _print_cells(found, found.cells)
    elif found.ranked:
        _print_cells(found, found.ranked[:_NUM_BEST])
        say(f"\nThe best {min(_NUM_BEST, len(found.ranked))} of {len(found.cells)} cells; --cells shows all.")


def _counts(found: Overview) -> str:
    return " · ".join(f"{found.counts[state]} {state}" for state in _ORDER if state in found.counts)


def waits_text(found: Overview) -> str:
    """For how long a sweep has only waited, if that is long enough to say."""
    if found.waits_s is None or found.waits_s < _WAITS_S:
        return ""
    return f"all of it waits: nothing has begun or ended for {duration_text(found.waits_s)}"


def _time_left(found: Overview) -> str:
    if not found.eta_s or found.typical_s is None:
        return ""
    running = found.counts.get("running", 0)
    at_once = f"{running} run at once" if running else f"at most {found.max_parallel} run at once"
    return f"about {duration_text(found.eta_s)} to go: a cell takes {duration_text(found.typical_s)}, {at_once}"


def _best_value(found: Overview) -> str:
    name, _ = found.metric
    return f"{name} {cell_text(found.ranked[0].metrics[name])}" if found.ranked else ""


def _best(found: Overview) -> str:
    if not found.ranked:
        return ""
    best = found.ranked[0]
    unfinished = "" if best.state == "completed" else f", {best.state}"
    settings = settings_text(best.values)
    return f"best {_best_value(found)}: cell {best.index}, {best.run}{unfinished}{f', {settings}' if settings else ''}"


def hours_text(hours: Hours) -> str:
    """`9.6 GPU-h, 38 CPU-h, 3 % of it lost (done again)`; empty if nothing has run."""
    if not hours.cpu_hours:
        return ""
    parts = [f"{_hours(hours.gpu_hours)} GPU-h"] if hours.gpu_hours else []
    parts.append(f"{_hours(hours.cpu_hours)} CPU-h")
    if hours.lost_share:
        parts.append(f"{percent_text(hours.lost_share)} of it lost (done again)")
    return f"{'at least ' if hours.is_estimate else ''}{', '.join(parts)}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _rounded(hours: float) -> float | None:
    return (round(hours, 2) if hours < 100 else round(hours)) or None


def percent_text(share: float) -> str:
    """`3 %`, `0.2 %`, and empty for nothing."""
    return f"{100 * share:.2g} %" if 0 < share < 0.995 else f"{100 * share:.0f} %" if share else ""


def _print_groups(found: Overview) -> None:
    """Why cells stand as they do; a small sweep says it in its own lines."""
    groups = found.groups[:_NUM_GROUPS]
    if not groups:
        return
    print_whole("")
    print_columns(
        [
            Column("state", [state_text(group.state) for group in groups]),
            Column("count", [len(group.cells) for group in groups]),
            Column("why", [" ".join(group.cause.split()) for group in groups], min_width=20),
            Column("cells", [_which(group.cells) for group in groups], rank=1, min_width=8, style="dim"),
        ]
    )
    if len(found.groups) > len(groups):
        say(f"and {len(found.groups) - len(groups)} more causes; --json has them all.")


def _which(cells: Sequence[int]) -> str:
    text = ranges(cells)
    return text if len(text) <= 24 else f"{text[:24].rsplit(',', 1)[0]},…"


def _print_cells(found: Overview, cells: Sequence[Cell]) -> None:
    """The cells as a table; what they have in common is left out."""
    name, _ = found.metric
    names = list(dict.fromkeys(key for cell in cells for key in cell.metrics if key.startswith("val/") and key != name))
    metrics = ([name] if any(name in cell.metrics for cell in cells) else []) + sorted(names)
    columns = [
        Column("cell", [cell.index for cell in cells]),
        Column("run", [cell.run for cell in cells], rank=2),
        *(Column(key, [cell.values.get(key) for cell in cells], is_exact=True) for key in found.sweep.body["varied"]),
        Column("state", [state_text(cell.state) for cell in cells]),
        Column("step", [cell.step or None for cell in cells], rank=4),
        *(
            Column(key, [cell.metrics.get(key) for cell in cells], rank=5 if position else 0)
            for position, key in enumerate(metrics[:_NUM_METRICS])
        ),
    ]
    if any(cell.attempts > 1 for cell in cells):
        columns.append(Column("attempts", [cell.attempts if cell.attempts > 1 else None for cell in cells], rank=6))
    if any(cell.hours.gpu_hours for cell in cells):
        columns.append(Column("GPU-h", [_rounded(cell.hours.gpu_hours) for cell in cells], rank=7))
    if any(cell.cause for cell in cells) and len(found.cells) > 1:
        columns.append(Column("why", [" ".join(cell.cause.split()) for cell in cells], rank=1, min_width=12))
    print_whole("")
    gone = print_columns(columns)
    if gone:
        say(f"No room here for {', '.join(gone)}; a wider terminal, a pipe or --json shows them.")


def print_report(found: Overview) -> None:
    """Print what each value of each varied key came to: cells, metric, cost."""
    name, more_is_better = found.metric
    print_whole(Text.assemble((found.sweep.id, "bold"), f"  {_counts(found)}"))
    for line in (_best(found), hours_text(found.hours)):
        if line:
            print_whole(Text(f"  {line}"))
    for key, values in axes(found).items():
        rows = [axis_row(cells, name, more_is_better) for cells in values.values()]
        print_whole("")
        columns = [
            Column(key, distinct_texts([cells[0].values.get(key) for cells in values.values()])),
            Column("cells", [row["cells"] for row in rows]),
            Column("done", [row["completed"] for row in rows]),
            Column("failed", [row["failed"] or None for row in rows], rank=3),
            Column(f"best {name}".strip(), [row["best"] for row in rows]),
            Column("mean", [row["mean"] for row in rows], rank=1),
            Column("spread", [row["spread"] for row in rows], rank=4),
            Column("GPU-h", [_rounded(row["hours"].gpu_hours) for row in rows], rank=2),
            Column("CPU-h", [_rounded(row["hours"].cpu_hours) for row in rows], rank=5),
            Column("lost", [percent_text(row["hours"].lost_share) for row in rows], rank=2),
        ]
        print_columns([column for column in columns if any(cell not in (None, "") for cell in column.cells)])


def axes(found: Overview) -> dict[str, dict[str, list[Cell]]]:
    """Each varied key with its values in full and their cells; a key whose values all differ says nothing."""
    by_key: dict[str, dict[str, list[Cell]]] = {}
    for key in found.sweep.body["varied"]:
        values: dict[str, list[Cell]] = {}
        for cell in found.cells:
            values.setdefault(full_text(cell.values.get(key)), []).append(cell)
        if len(values) < len(found.cells) or len(found.sweep.body["varied"]) == 1:
            by_key[key] = values
    return by_key


def axis_row(cells: Sequence[Cell], name: str, more_is_better: bool) -> dict[str, Any]:
    """What the cells of one value came to."""
    measured = [cell.metrics[name] for cell in cells if name in cell.metrics and cell.state == "completed"]
    mean, sd = mean_and_sd(measured)
    return {
        "cells": len(cells),
        "completed": sum(cell.state == "completed" for cell in cells),
        "failed": sum(cell.state == "failed" for cell in cells),
        "best": (max if more_is_better else min)((v for v in measured if not math.isnan(v)), default=None),
        "mean": mean if measured else None,
        "spread": sd if len(measured) > 1 else None,
        "hours": sum((cell.hours for cell in cells), Hours()),
    }
