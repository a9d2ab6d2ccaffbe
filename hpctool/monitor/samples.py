"""Two samples counted in the same bins: how different they are (effect) and whether that may be chance (p).

Both samples are finite: a reference of some hundred rows is no exact distribution, so both are taken as drawn.

B bins
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Counts = npt.NDArray[np.int64]

#: Cochran's rule: Pearson's test wants this many rows expected in each cell.
MIN_EXPECTED = 5.0
#: Added to each count of the index, so that an empty bin is no infinite difference (Jeffreys' prior).
PSEUDO_COUNT = 0.5


def merged(reference_B: Counts, now_B: Counts, *, ordered: bool) -> npt.NDArray[np.int64]:
    """The two rows of counts with neighbouring bins joined until each is expected to hold MIN_EXPECTED, (2, ≤ B).

    Bins without an order (classes) are joined from the rarest. Two bins are left where there are rows for two at all:
    the largest and the rest.
    """
    table = np.stack([reference_B, now_B]).astype(np.int64)
    if not ordered:
        table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    # In the rarer sample the expected counts are the smaller ones.
    enough = MIN_EXPECTED * table.sum() / max(1, table.sum(axis=1).min())
    groups: list[npt.NDArray[np.int64]] = []
    open_group = np.zeros(2, np.int64)
    for column in table.T:
        open_group = open_group + column
        if open_group.sum() >= enough:
            groups.append(open_group)
            open_group = np.zeros(2, np.int64)
    if groups:
        groups[-1] = groups[-1] + open_group
    if len(groups) < 2:
        largest = table[:, table.sum(axis=0).argmax()]
        rest = table.sum(axis=1) - largest
        groups = [largest, rest] if rest.any() else [largest]
    return np.stack(groups, axis=1)


def effect(table: npt.NDArray[np.int64]) -> float:
    """The population stability index of a (2, B) table, less what two samples of these sizes show by chance; >= 0.

    PSI = Σ (q - p) ln(q / p), customary in credit scoring (Siddiqi 2006, "Credit Risk Scorecards": below 0.1 no
    change, above 0.25 a large one). Without drift its mean is (B - 1)(1/n + 1/m): Yurdakul and Naranjo 2020,
    "Statistical properties of the population stability index".
    """
    num_bins = table.shape[1]
    rows = table.sum(axis=1)
    if num_bins < 2 or rows.min() == 0:
        return 0.0
    p_B, q_B = (table + PSEUDO_COUNT) / (rows + PSEUDO_COUNT * num_bins)[:, None]
    index = float(((q_B - p_B) * np.log(q_B / p_B)).sum())
    by_chance = (num_bins - 1) * float((1 / rows).sum())
    return max(0.0, float(index - by_chance))


def p_value(table: npt.NDArray[np.int64]) -> float:
    """How likely two samples of one distribution differ this much: Pearson's χ², Fisher's exact test where it is small.

    1 for a table with a single bin, which cannot differ.
    """
    if table.shape[1] < 2 or table.sum(axis=1).min() == 0:
        return 1.0
    result: Any
    if table.shape[1] == 2 and stats.contingency.expected_freq(table).min() < MIN_EXPECTED:
        result = stats.fisher_exact(table)
    else:
        result = stats.chi2_contingency(table, correction=False)
    return float(result.pvalue)


def q_values(p: list[float]) -> list[float]:
    """Benjamini and Hochberg 1995: alarming where q < α keeps the expected share of false alarms below α."""
    return [float(q) for q in stats.false_discovery_control(p, method="bh")] if p else []


def dominance(reference_B: Counts, now_B: Counts) -> float:
    """The chance that a value now is larger than one of the reference, equal bins counting half; 0.5 without rows.

    McGraw and Wong 1992, the common language effect size.
    """
    pairs = float(reference_B.sum()) * float(now_B.sum())
    if pairs == 0:
        return 0.5
    below_B = np.cumsum(reference_B) - reference_B
    return float((now_B * (below_B + 0.5 * reference_B)).sum()) / pairs
