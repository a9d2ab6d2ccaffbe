"""Comparing runs: only what differs, the metrics side by side, and where two runs part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpctool.rundir import RunDir
from hpctool.track.metrics import Curves, mean_and_sd, read_metrics, same, to_json
from hpctool.track.row import read_config, read_row

#: Times and amounts of the machine differ between two equal runs; they say nothing about where the runs part.
_MEASURED = re.compile(r"^(perf|time|system)/|_(s|ms|per_s|mb|gb|wait)$")
#: Where and with how much a run runs: its result is the same, or should be.
_WHERE = ("cluster.", "resources.", "paths.", "track.")
#: Metrics of which less is better, where no configuration says so.
_LESS_IS_BETTER = re.compile(r"(^|[/_])(loss|error|err|perplexity|ppl|mse|mae|rmse|ece|nll|wer|cer)(_|$)")


@dataclass(frozen=True)
class Parting:
    """Where the curves of two runs part: `step` None if they never do in the `num_steps` that both have logged."""

    num_steps: int
    step: int | None = None
    metric: str | None = None
    values: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        values = None if self.values is None else [to_json(value) for value in self.values]
        return {"num_steps": self.num_steps, "step": self.step, "metric": self.metric, "values": values}


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in their seed only: for each metric that all of them have, mean, standard deviation (n − 1)."""

    ids: list[str]
    #: mean and standard deviation by metric, NaN where a run's value is not finite
    metrics: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        told = {name: {"mean": to_json(mean), "sd": to_json(sd)} for name, (mean, sd) in self.metrics.items()}
        return {"ids": self.ids, "n": len(self.ids), "metrics": told}


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: each dict has a list with one value per run, in the order of `ids`; None where it has none."""

    ids: list[str]
    states: list[str]
    config: dict[str, list[Any]]
    data: dict[str, list[Any]]
    code: dict[str, list[Any]]
    environment: dict[str, list[Any]]
    hardware: dict[str, list[Any]]
    #: the runs whose packages nobody wrote down; they are None in `environment`, which compares the others
    no_environment: list[str]
    metrics: dict[str, list[float | None]]
    digests: list[str | None]
    parting: Parting | None
    #: those of two and more runs
    seeds: list[Seeds]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        metrics = {k: [None if v is None else to_json(v) for v in values] for k, values in self.metrics.items()}
        parting = self.parting.to_json() if self.parting else None
        seeds = [group.to_json() for group in self.seeds]
        return {**vars(self), "metrics": metrics, "parting": parting, "seeds": seeds}


def compare(runs: Sequence[RunDir]) -> Comparison:
    """Compare two or more runs. Raises what reading their run.json and config.yaml raises."""
    records = [run.record() for run in runs]
    rows = [read_row(run) for run in runs]
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    environments = [_environment(run) for run in runs]
    configs = [read_config(run) for run in runs]
    return Comparison(
        ids=[run.id for run in runs],
        states=[row.state for row in rows],
        config=differing(configs),
        data=differing([{one["name"]: one["id"] for one in run.inputs()} for run in runs]),
        code=differing([record.get("code") or {} for record in records]),
        environment=differing(environments),
        hardware=differing([_hardware(run) for run in runs]),
        no_environment=[run.id for run, found in zip(runs, environments, strict=True) if found is None],
        metrics={name: [row.metrics.get(name) for row in rows] for name in sorted(names)},
        digests=[row.param_digest for row in rows],
        parting=part(read_metrics(runs[0]), read_metrics(runs[1])) if len(runs) == 2 else None,
        seeds=by_seed([run.id for run in runs], configs, [row.metrics for row in rows]),
    )


def by_seed(
    ids: Sequence[str], configs: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, float]]
) -> list[Seeds]:
    """The groups of two and more runs whose configurations are alike but for `seed`, the largest first."""
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        what = {key: value for key, value in config.items() if key != "seed" and not key.startswith(_WHERE)}
        groups.setdefault(repr(sorted(what.items())), []).append(index)
    found = []
    for members in sorted(groups.values(), key=lambda members: -len(members)):
        if len(members) > 1 and len({configs[index].get("seed") for index in members}) > 1:
            shared = set.intersection(*(set(metrics[index]) for index in members))
            values = {name: [metrics[index][name] for index in members] for name in sorted(shared)}
            spread = {name: mean_and_sd(v) for name, v in values.items()}
            found.append(Seeds([ids[index] for index in members], spread))
    return found


def differing(sides: Sequence[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """The keys whose values are not the same on all sides, each with one value per side, None where it is not there.

    A side that is None was not recorded: it has None everywhere and differs from nobody.
    """
    known = [side for side in sides if side is not None]
    keys = sorted({key for side in known for key in side})
    differ = [key for key in keys if any(side.get(key) != known[0].get(key) for side in known[1:])]
    return {key: [None if side is None else side.get(key) for side in sides] for key in differ}


def part(ours: Curves, theirs: Curves) -> Parting:
    """The first step at which a metric that both runs logged differs, to the last bit; measured times do not count."""
    steps: set[int] = set()
    first: Parting | None = None
    for name in sorted(set(ours) & set(theirs)):
        if is_measured(name):
            continue
        other = dict(theirs[name])
        for step, value in ours[name]:
            if step not in other:
                continue
            steps.add(step)
            if not same(value, other[step]) and (first is None or first.step is None or step < first.step):
                first = Parting(0, step, name, (value, other[step]))
    if first is None:
        return Parting(len(steps))
    return Parting(len(steps), first.step, first.metric, first.values)


def is_measured(name: str) -> bool:
    """Whether a metric is a time or an amount of the machine: `perf/…`, `time/…`, `system/…`, `…_s`, `…_mb` …"""
    return _MEASURED.search(name) is not None


def more_is_better(name: str) -> bool:
    """Whether more of a metric is better, as its name lets one guess: not of losses and errors."""
    return _LESS_IS_BETTER.search(name) is None


def telling_metrics(sides: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of metrics, the most telling first: of validation or test, no loss, had by many; times come last."""
    counts = Counter(name for side in sides for name in side)

    def rank(name: str) -> tuple[bool, int, bool, int, str]:
        of_what = {"val": 0, "test": 0, "best": 1, "train": 2}.get(name.split("/")[0], 3)
        return (is_measured(name), of_what, "loss" in name, -counts[name], name)

    return sorted(counts, key=rank)


def _hardware(run: RunDir) -> dict[str, Any]:
    """Of the newest attempt: ranks, processor, GPUs; of nodes only how many, their names say little."""
    begun = run.story().of_kind("begun")[-1:]
    told: dict[str, Any] = {}
    for body in begun:
        machine = body.get("hardware") or {}
        told = {
            "ranks": body.get("world_size"),
            "cpu": machine.get("cpu"),
            "gpus": ", ".join(machine.get("gpus") or []),
        }
    return told


def _environment(run: RunDir) -> dict[str, str] | None:
    """environment.txt as package → version; the lines before the packages (Python, modules) under their first word.

    None where it was not written.
    """
    found = {}
    try:
        text = run.environment_txt.read_text()
    except FileNotFoundError:
        return None
    for line in text.splitlines():
        if line.startswith("# "):
            found[line[2:].split()[0].rstrip(":")] = line[2:]
        elif "==" in line:
            name, _, version = line.partition("==")
            found[name] = version
    return found
