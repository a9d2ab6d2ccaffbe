"""report.html of many runs: one file that opens without a network and answers what people ask of an experiment.

Which run is best, what it cost, which setting mattered, how the curves went, what failed and why. The numbers are
embedded as JSON and drawn by page/report.js; a page of a thousand runs stays below 3 MB, for which curves are thinned.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from scipy import stats

from hpctool.launch.slurm.standing import parse_time_s
from hpctool.rundir import Story, now
from hpctool.track import hours
from hpctool.track.compare import differing, is_measured, more_is_better, telling_metrics
from hpctool.track.metrics import read_metrics
from hpctool.track.row import Row, noting

#: what the curves of all runs may take of the page
_CURVE_BYTES = 1_400_000
_BYTES_PER_POINT = 14
_MAX_POINTS, _MIN_POINTS = 120, 6
_MAX_CURVES = 4
_MAX_METRICS = 5
_MAX_SETTINGS = 12
#: values of a number are put into so many groups of equal size before their shares are compared
_NUM_GROUPS = 6


@dataclass(frozen=True)
class Asked:
    """What a report is about: its title, the command that made it, and the metric that says which run is best."""

    title: str
    command: str
    metric: str = ""
    #: further sections, each with a title, and any of `sentences`, `columns` and `rows` of a table, and `bars` (key,
    #: share 0 to 1, text): what a search adds to its sweep's report
    sections: list[dict[str, Any]] = field(default_factory=list)


def build(rows: Sequence[Row], asked: Asked) -> dict[str, Any]:
    """The numbers of a report as JSON can hold them. Reads each run's ledger and curves."""
    names = [name for name in telling_metrics([row.metrics for row in rows]) if not is_measured(name)]
    metric = asked.metric or (names[0] if names else "")
    up = more_is_better(metric)
    names = list(dict.fromkeys([metric, *names]))[:_MAX_METRICS] if metric else []
    settings = _settings(rows)
    runs = [_run(row, names, settings) for row in rows]
    curves = names[:_MAX_CURVES]
    num_points = _num_points(sum(run["rundir"] is not None for run in runs) * max(len(curves), 1))
    for run in runs:
        rundir, story = run.pop("rundir"), run.pop("story")
        run["curves"] = _curves(rundir, story, curves, num_points) if rundir is not None else {}
    return {
        **{"title": asked.title, "command": asked.command, "made": now(), "metric": metric, "more_is_better": up},
        **{"metrics": names, "settings": settings, "curves": curves, "runs": runs, "sections": asked.sections},
        "importance": importance(runs, settings, metric),
        "causes": _causes(rows),
    }


def render(data: Mapping[str, Any]) -> str:
    """The page. Whatever names and causes say is text there, and nothing is loaded from anywhere."""
    page = resources.files("hpctool.track").joinpath("page")
    parts = {name: page.joinpath(f"report.{name}").read_text(encoding="utf-8") for name in ("html.j2", "css", "js")}
    # In a script element only "</" could end it, and "<!--" confuse it; in JSON both may be written otherwise.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(parts["html.j2"]).render(
        title=data["title"], data=text, css=parts["css"], script=parts["js"]
    )


def importance(runs: Sequence[Mapping[str, Any]], settings: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """How much of the metric each setting explains alone: eta squared of a one-way ANOVA over the metric's ranks.

    0 to 1, the largest first; numbers are put into groups of equal size. Settings that act only together look small.
    """
    with_value = [run for run in runs if run["metrics"].get(metric) is not None]
    found = []
    for key in settings:
        groups = _groups([run["settings"].get(key) for run in with_value])
        if len(set(groups)) < 2 or len(with_value) < 2 * len(set(groups)):
            continue
        ranks = stats.rankdata([run["metrics"][metric] for run in with_value])
        total = float(((ranks - ranks.mean()) ** 2).sum())
        parts = [ranks[np.array(groups) == one] for one in set(groups)]
        between = sum(len(part) * float(part.mean() - ranks.mean()) ** 2 for part in parts)
        found.append({"key": key, "share": between / total if total else 0.0, "groups": len(parts), "runs": len(ranks)})
    return sorted(found, key=lambda one: -one["share"])


def _groups(values: Sequence[Any]) -> list[str]:
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if is_number and len(set(values)) > _NUM_GROUPS:
        edges = np.quantile(values, np.linspace(0, 1, _NUM_GROUPS + 1)[1:-1])
        return [str(int(group)) for group in np.searchsorted(edges, values)]
    return [str(value) for value in values]


def _settings(rows: Sequence[Row]) -> list[str]:
    """The keys in which the runs differ: those that were varied or typed, else any."""
    found = differing([row.changed for row in rows])
    if not found and len(rows) > 1:
        found = differing([row.config for row in rows])
    return [key for key in found if not isinstance(next(iter(found[key])), dict | list)][:_MAX_SETTINGS]


def _run(row: Row, names: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    story, cost = Story(), hours.Hours()
    with noting([]):  # the row says it
        if row.rundir is not None:
            story = row.rundir.story()
            of_resources = {key[10:]: value for key, value in row.config.items() if key.startswith("resources.")}
            cost = hours.of_run(row.rundir, story, of_resources, time.time())
    ended = [parse_time_s(body.get("time")) for body in story.of_kind("ended")]
    metrics = {name: row.metrics[name] for name in names if math.isfinite(row.metrics.get(name, math.nan))}
    return {
        **{"id": row.id, "job": row.job, "state": row.state, "cause": row.cause, "sweep": row.sweep, "cell": row.cell},
        **{"created": row.created, "by": row.by, "step": row.step, "attempts": row.attempts, "metrics": metrics},
        "settings": {key: _plain(row.setting(key)) for key in settings},
        "hours": round(cost.gpu_hours or cost.cpu_hours, 5),
        "lost": round(cost.lost_share, 4),
        "is_gpu": bool(cost.gpu_hours),
        "ended_s": ended[-1] if ended and ended[-1] else None,
        "data": (row.data_commit or "")[:12],
        "digest": (row.param_digest or "")[:12],
        **{"rundir": row.rundir, "story": story},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _num_points(num_curves: int) -> int:
    return max(_MIN_POINTS, min(_MAX_POINTS, _CURVE_BYTES // (_BYTES_PER_POINT * max(num_curves, 1))))


def _curves(rundir: Any, story: Story, names: Sequence[str], num_points: int) -> dict[str, list[Any]]:
    """Each metric as [steps, values], thinned: the lowest and highest of each stretch stay."""
    found: dict[str, list[Any]] = {}
    with noting([]):
        for name, points in read_metrics(rundir, story).items():
            whole = [(step, value) for step, value in points if math.isfinite(value)]
            if name in names and whole:
                kept = thinned(whole, num_points)
                found[name] = [[step for step, _ in kept], [float(f"{value:.5g}") for _, value in kept]]
    return found


def thinned(points: Sequence[tuple[int, float]], num_points: int) -> list[tuple[int, float]]:
    """At most `num_points` of a curve: its first and last point, and the lowest and highest of each stretch between."""
    if len(points) <= num_points:
        return list(points)
    inner, num_stretches = points[1:-1], max(1, (num_points - 2) // 2)
    kept = [points[0]]
    for number in range(num_stretches):
        part = inner[number * len(inner) // num_stretches : (number + 1) * len(inner) // num_stretches]
        if part:
            kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return [*kept, points[-1]]


def _causes(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Why runs failed or were cancelled, the most frequent first; numbers in the words do not make another cause."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.state in ("failed", "cancelled", "broken"):
            found.setdefault((row.state, re.sub(r"\d+", "#", row.cause)), []).append(row)
    ranked = sorted(found.values(), key=lambda those: -len(those))
    return [{"state": t[0].state, "cause": t[0].cause, "count": len(t), "runs": [r.id for r in t[:5]]} for t in ranked]
