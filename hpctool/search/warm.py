"""Warm start: what earlier runs have measured at points of the space, by a sweep or by any question about runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hpctool.errors import InputError, nearest
from hpctool.launch.cells import find_sweep, list_sweep_ids
from hpctool.launch.plan import Planned
from hpctool.rundir import RunDir
from hpctool.search.space import Point, Space
from hpctool.search.spec import Prior, Spec
from hpctool.track import query
from hpctool.track.metrics import from_json, read_metrics
from hpctool.track.row import Row
from hpctool.track.runs import list_rows


def priors(runs: Path, asked: str, spec: Spec, first: Planned, *, from_any: bool) -> tuple[list[Prior], str]:
    """The points that are known, and a sentence on what was left out. They cost nothing and are no trials.

    `first` is a trial as it would run. Raises InputError where runs learnt from other data and `from_any` is false,
    and where nothing is known of this space.
    """
    rows = [row for row in _rows(runs, asked) if row.job == spec.job and row.rundir is not None]
    _check_data(rows, first, asked, from_any)
    found, left_out, names = list[Prior](), Counter[str](), set[str]()
    for row in rows:
        rundir = row.rundir
        assert rundir is not None
        point = _point(row, rundir, spec.space)
        if point is None:
            left_out["outside of the space"] += 1
            continue
        values = _values(rundir, spec)
        names.update(row.metrics)
        if values:
            found.append(Prior(point, values, row.id))
        else:
            left_out[f"without {spec.metric} at a rung"] += 1
    said = ", ".join(f"{number} {why}" for why, number in left_out.items())
    if not found:
        near = nearest(spec.metric, sorted(names))
        guess = f" Did you mean the metric {' or '.join(near)}?" if near and spec.metric not in names else ""
        raise InputError(
            f"search.from={asked}: of {len(rows)} runs of {spec.job} none helps ({said or 'none'}).{guess}"
        )
    return found, f"{len(found)} earlier runs are known{f'; left out: {said}' if said else ''}."


def _rows(runs: Path, asked: str) -> list[Row]:
    rows = list_rows(runs)
    if any(one.startswith(asked) for one in list_sweep_ids(runs)):
        sweep = find_sweep(runs, asked).id
        return [row for row in rows if row.sweep == sweep]
    return query.choose(rows, asked)


def _check_data(rows: list[Row], first: Planned, asked: str, from_any: bool) -> None:
    mine = {one.id for one in first.inputs if one.kind == "dataset"}
    others = [row for row in rows if row.data_commit and mine and row.data_commit not in mine]
    if others and not from_any:
        raise InputError(
            f"search.from={asked}: {len(others)} of {len(rows)} runs learnt from other data, {others[0].id} from "
            f"{(others[0].data_commit or '')[:12]}; their numbers are no measure here. search.from_any=true takes them."
        )


def _point(row: Row, rundir: RunDir, space: Space) -> Point | None:
    """Where a run stands in the space; None if it does not."""
    choices: dict[str, Any] = rundir.record().get("choices") or {}
    point = {axis.key: choices.get(axis.key) if axis.is_group else row.config.get(axis.key) for axis in space.axes}
    return point if space.holds(point) else None


def _values(rundir: RunDir, spec: Spec) -> dict[int, float]:
    """The metric at each rung that the run has come to."""
    points = dict(read_metrics(rundir).get(spec.metric, []))
    values = {rung: points[step] for rung, step in enumerate(spec.rungs) if step in points}
    result = rundir.result() or {}
    if result.get("state") == "completed":
        last = (result.get("metrics") or {}).get(spec.metric)
        end = from_json(last) if last is not None else points[max(points)] if points else None
        values |= {} if end is None else {spec.last_rung: end}
    return values
