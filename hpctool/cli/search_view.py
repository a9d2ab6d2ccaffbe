"""How a search looks in a terminal."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from hpctool.cli.output import cell_text, say
from hpctool.cli.sweep_view import WHOLE, waits_text
from hpctool.cli.tables import Column, print_columns, print_whole, settings_text, state_text, table_of
from hpctool.errors import counted
from hpctool.launch.progress import progress
from hpctool.rundir import RunDir, Story
from hpctool.search.overview import STATES, Looked
from hpctool.track.sparkline import course, sparkline
from hpctool.track.sweeps import Cell

_NUM_BEST = 15
_NUM_RUNNING = 16


def print_search(found: Looked, all_trials: bool) -> None:
    """Print how a search stands: states, budget, workers, rungs, the best trial, and the trials."""
    for line in _lines(found):
        print_whole(line)
    _print_rungs(found)
    ranked = found.ranked
    if all_trials or len(found.cells) <= WHOLE:
        told = {cell.index for cell in ranked}
        _print_trials(found, [*ranked, *(cell for cell in found.cells if cell.index not in told)])
    elif ranked:
        _print_trials(found, ranked[:_NUM_BEST])
        say(f"\nThe best {min(_NUM_BEST, len(ranked))} of {len(found.cells)} trials; --cells shows all.")


def _lines(found: Looked) -> list[Text]:
    """What a search is, and how it stands."""
    spec, state = found.state.spec, found.state
    axes = ", ".join(axis.key for axis in spec.space.axes)
    how = spec.sampler if spec.schedule == "none" else f"{spec.schedule} with {spec.sampler}"
    lines = [Text.assemble((spec.id, "bold"), f"  {spec.job}, {how}, {spec.metric} ({spec.mode}) over {axes}")]
    told = (_states(found), _budget(found), _workers(found), waits_text(found), _best(found))
    lines += [Text(f"  {line}") for line in told if line]
    if state.stopped:
        lines.append(Text(f"  it has stopped: {state.stopped}"))
    for name, why in found.broken.items():
        lines.append(Text(f"  entry {name} of the journal is set aside: {why}", style="red"))
    return lines


def live(found: Looked, runs: Path, width: int) -> Group:
    """How a search stands, for a terminal that is drawn anew: the course of the best, the rungs, and what trains."""
    parts: list[RenderableType] = [
        Text(line.plain, line.style, no_wrap=True, overflow="ellipsis") for line in _lines(found)
    ]
    if len(found.course) > 1:
        line = sparkline(found.course, min(60, max(12, width - 40)))
        parts.append(Text(f"  course of the best  {line}  {found.course[-1]:.4g}"))
    if columns := _rung_columns(found):
        parts += [Text(), table_of(columns, width)]
    running = [cell for cell in found.cells if cell.state == "running"]
    if running:
        parts += [Text(), table_of(_running_columns(found, running[:_NUM_RUNNING], runs), width)]
        if len(running) > _NUM_RUNNING:
            parts.append(Text(f"and {len(running) - _NUM_RUNNING} more that train", "dim"))
    return Group(*parts)


def _running_columns(found: Looked, cells: list[Cell], runs: Path) -> list[Column]:
    trials, spec, now_s = found.state.trials, found.state.spec, time.time()
    rundirs = [RunDir(runs / cell.run) for cell in cells]
    stories = [rundir.story() for rundir in rundirs]
    how_far = [progress(rundir, story, now_s) for rundir, story in zip(rundirs, stories, strict=True)]
    goals = [trials[cell.index].to for cell in cells]
    return [
        Column("trial", [cell.index for cell in cells]),
        Column("worker", [trials[cell.index].slot for cell in cells], rank=3),
        *(Column(axis.key, [cell.values.get(axis.key) for cell in cells], rank=1) for axis in spec.space.axes),
        Column("step", [str(one) for one in how_far]),
        Column("to step", ["end" if to >= spec.last_rung else spec.rungs[to] for to in goals], rank=2),
        Column("course", [_course(rundir, story) for rundir, story in zip(rundirs, stories, strict=True)], rank=4),
    ]


def _course(rundir: RunDir, story: Story) -> str:
    return course(rundir, story) if story.attempt else ""


def _states(found: Looked) -> str:
    of = f" of at most {found.state.max_trials}" if found.state.max_trials else ""
    states = " · ".join(f"{found.counts[state]} {state}" for state in STATES if state in found.counts)
    return f"{counted(len(found.cells), 'trial')}{of}{f': {states}' if states else ''}"


def _budget(found: Looked) -> str:
    body = found.to_json()["budget"]
    of = f" of {body['limit']:g}" if body["limit"] else ""
    parts = [f"{body['used']:.3g}{of} {body['unit']} used"]
    if body["committed"]:
        parts.append(f"{body['committed']:.2g} committed")
    if body["saved"] and found.state.spec.schedule != "none":
        parts.append(f"training all to the end would have taken {body['saved'] + body['used']:.3g}")
    return ", ".join(parts)


def _workers(found: Looked) -> str:
    why = f" ({'; '.join(found.why)})" if found.why else ""
    return "workers: " + ", ".join(f"{number} {state}" for state, number in found.workers.items()) + why


def _best(found: Looked) -> str:
    if not found.ranked:
        return ""
    best, spec = found.ranked[0], found.state.spec
    trial = found.state.trials[best.index]
    rung = "" if trial.reached == spec.last_rung else f" at step {spec.rungs[trial.reached]}"
    value = cell_text(best.metrics[spec.metric])
    return f"best {spec.metric} {value}{rung}: trial {best.index}, {best.run}, {settings_text(best.values)}"


def _print_rungs(found: Looked) -> None:
    if columns := _rung_columns(found):
        print_whole("")
        print_columns(columns)


def _rung_columns(found: Looked) -> list[Column]:
    if found.state.spec.last_rung == 0 or not found.cells:
        return []
    rows = found.rungs
    return [
        Column("rung", [row["rung"] for row in rows]),
        Column("step", ["end" if row["step"] is None else row["step"] for row in rows]),
        Column("trials", [row["trials"] for row in rows]),
        Column("went on", [row["went_on"] or None for row in rows]),
        Column(f"best {found.state.spec.metric}", [row["best"] for row in rows]),
    ]


def _print_trials(found: Looked, cells: list[Cell]) -> None:
    spec, trials = found.state.spec, found.state.trials
    hours = [cell.hours.gpu_hours or cell.hours.cpu_hours for cell in cells]
    columns = [
        Column("trial", [cell.index for cell in cells]),
        Column("run", [cell.run for cell in cells], rank=2),
        *(Column(axis.key, [cell.values.get(axis.key) for cell in cells]) for axis in spec.space.axes),
        Column("state", [state_text(cell.state) for cell in cells]),
        Column("step", [cell.step or None for cell in cells], rank=3),
        Column(spec.metric, [cell.metrics.get(spec.metric) for cell in cells]),
        Column("from", [trials[cell.index].why for cell in cells], rank=4),
        Column(f"{spec.unit}-h", [float(f"{value:.2g}") or None for value in hours], rank=5),
    ]
    if any(cell.cause for cell in cells):
        columns.append(Column("why", [" ".join(cell.cause.split()) for cell in cells], rank=1, min_width=12))
    print_whole("")
    gone = print_columns(columns)
    if gone:
        say(f"No room here for {', '.join(gone)}; a wider terminal, a pipe or --json shows them.")
