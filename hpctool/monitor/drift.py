"""Drift: what a model is asked and answers now, against what it was exported with, in the reference's own bins.

An alarm needs three things: a difference worth one (effect), that is no chance among all statistics looked at (q), in
enough rows. Millions of rows make every trifle significant, and a handful of rows can look like anything.

N rows, K classes, B bins
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpctool.export import statistics
from hpctool.monitor import prior, samples
from hpctool.monitor.accuracy import Estimate, estimate_accuracy
from hpctool.monitor.samples import Counts
from hpctool.world import Array

#: the kinds of statistics: what was asked, what was answered, how often each class was
KINDS = ("input", "output", "prior")
#: Rows described at a time: memory does not grow with the window.
CHUNK_ROWS = 16_384


class Predicted(Protocol):
    """What is compared: a journal's Predictions."""

    @property
    def input(self) -> Array:
        """What was asked, (N, …)."""
        ...

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Calibrated probabilities, (N, K)."""
        ...


@dataclass(frozen=True)
class Limits:
    """What counts as drift; the values of conf/monitor.yaml."""

    alpha: float = 0.01
    min_effect: float = 0.1
    min_rows: int = 100


@dataclass(frozen=True)
class Statistic:
    """One statistic in the reference and now."""

    name: str
    #: one of KINDS
    kind: str
    #: inner edges of the bins; none for classes
    edges: list[float]
    #: rows in each bin; the last bin holds what is not a number
    reference: list[int]
    now: list[int]
    #: population stability index beyond that of chance, >= 0
    effect: float
    p: float
    q: float
    #: the chance that a value now is larger than one of the reference; 0.5 for classes
    dominance: float
    alarm: bool


@dataclass(frozen=True)
class Report:
    """The comparison, the statistics with the largest effect first."""

    statistics: list[Statistic]
    num_rows: int
    num_reference_rows: int
    limits: Limits
    #: the classes' true shares, if only these have changed; None with the reason
    true_shares: list[float] | None
    true_shares_reason: str
    #: how often the reference's labels were each class
    reference_labels: list[int]
    #: of the model on the reference's labelled rows; None without labels
    reference_accuracy: float | None
    #: how far confidence and accuracy were apart there, after calibration (ECE); 0 without labels
    reference_calibration_error: float
    accuracy: Estimate | None

    @property
    def too_few(self) -> bool:
        """Whether there are too few rows for any alarm."""
        return self.num_rows < self.limits.min_rows

    @property
    def alarm(self) -> bool:
        return any(one.alarm for one in self.statistics)

    def alarmed(self, kind: str) -> list[str]:
        """The names of the statistics of a kind that have drifted, the largest effect first."""
        return [one.name for one in self.statistics if one.alarm and one.kind == kind]


def compare(reference: dict[str, Any], predictions: Predicted, limits: Limits | None = None) -> Report:
    """Compare predictions with a bundle's reference.json; a statistic that only one of them knows is left out."""
    limits = limits or Limits()
    num_rows = len(predictions.probabilities)
    tables = _input_tables(reference["inputs"], predictions.input)
    tables += _output_tables(reference["outputs"], predictions.probabilities)
    predicted = prior.predicted_counts(predictions.probabilities)
    tables.append(_Table("predicted_class", "prior", [], np.array([*reference["predicted"], 0]), predicted))
    confusion_KK = np.array(reference["confusion"], np.int64)
    shares, reason = None, f"there are fewer than {limits.min_rows} rows"
    if num_rows >= limits.min_rows:
        shares, reason = prior.true_shares(confusion_KK, predicted[:-1])
    return Report(
        _judged(tables, limits, num_rows),
        num_rows,
        reference["num_rows"],
        limits,
        shares,
        reason,
        reference["labels"],
        float(np.trace(confusion_KK) / confusion_KK.sum()) if confusion_KK.any() else None,
        reference["calibration"]["ece_after"],
        estimate_accuracy(predictions.probabilities),
    )


@dataclass
class _Table:
    """The counts of one statistic before they are judged."""

    name: str
    kind: str
    edges: list[float]
    reference: Counts
    now: Counts


def _judged(tables: list[_Table], limits: Limits, num_rows: int) -> list[Statistic]:
    merged = [samples.merged(t.reference, t.now, ordered=t.kind != "prior") for t in tables]
    effects, p = [samples.effect(m) for m in merged], [samples.p_value(m) for m in merged]
    judged = []
    for table, effect, p_one, q in zip(tables, effects, p, samples.q_values(p), strict=True):
        alarm = effect >= limits.min_effect and q < limits.alpha and num_rows >= limits.min_rows
        numbers = samples.dominance(table.reference[:-1], table.now[:-1]) if table.edges else 0.5
        counts = table.reference.tolist(), table.now.tolist()
        judged.append(Statistic(table.name, table.kind, table.edges, *counts, effect, p_one, q, numbers, alarm))
    return sorted(judged, key=lambda one: (-one.effect, one.q, one.name))


def _input_tables(histograms: dict[str, Any], inputs_N: Array) -> list[_Table]:
    found = _empty_tables("input", histograms)
    for chunk in _chunks(inputs_N):
        _count_into(found, statistics.input_statistics(chunk))
    return list(found.values())


def _output_tables(histograms: dict[str, Any], probabilities_NK: npt.NDArray[np.float32]) -> list[_Table]:
    found = _empty_tables("output", histograms)
    for chunk in _chunks(probabilities_NK):
        _count_into(found, statistics.output_statistics(chunk))
    return list(found.values())


def _empty_tables(kind: str, histograms: dict[str, Any]) -> dict[str, _Table]:
    counts = {name: np.array([*h["counts"], h["num_missing"]], np.int64) for name, h in histograms.items()}
    return {name: _Table(name, kind, histograms[name]["edges"], c, np.zeros_like(c)) for name, c in counts.items()}


def _count_into(tables: dict[str, _Table], found: statistics.Statistics) -> None:
    for name in set(tables) - set(found):
        del tables[name]
    for name, table in tables.items():
        counts, num_missing = statistics.count(found[name], table.edges)
        table.now += np.array([*counts, num_missing], np.int64)


def _chunks(rows_N: Array) -> Iterator[Array]:
    return (rows_N[first : first + CHUNK_ROWS] for first in range(0, len(rows_N), CHUNK_ROWS))
