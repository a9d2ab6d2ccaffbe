"""Which predictions are worth a person's time: the uncertain ones, and a random audit of all.

The audit is drawn first and from everything, so that the accuracy found on it holds for everything; what is chosen
for its uncertainty says nothing about the rest.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hpctool.data.identity import content_digests, words
from hpctool.errors import InputError
from hpctool.export.statistics import output_statistics
from hpctool.serve.journal import Predictions

Measure = Literal["margin", "entropy"]
#: `unlabelled` are rows of a dataset (rows.py)
Reason = Literal["uncertain", "audit", "unlabelled"]


@dataclass(frozen=True)
class Selection:
    """What is asked for; `source`, `since` and `until` (unix) narrow the journal down, None takes all."""

    num_uncertain: int
    num_audit: int
    measure: Measure = "margin"
    source: str | None = None
    since: float | None = None
    until: float | None = None
    seed: int = 0


class Chosen(NamedTuple):
    """A row of the predictions, why it was chosen and how probable that was."""

    row: int
    reason: Reason
    inclusion_probability: float


def choose(predictions: Predictions, asked: Selection, reviewed: Set[str]) -> tuple[list[Chosen], int]:
    """The chosen rows in random order, and how many rows could have been chosen.

    Which inputs are chosen follows from the inputs, the answers and the seed, not from the order of the journal: asked
    twice of the same traffic, whoever was killed meanwhile, people see the same.

    An input that stands several times counts once; rows whose prediction ids are among `reviewed` are left out. The
    order does not tell the reasons apart, so that the audit is looked at like the rest. Raises InputError where
    nothing is left.
    """
    if min(asked.num_uncertain, asked.num_audit) < 0 or asked.num_uncertain + asked.num_audit == 0:
        raise InputError(
            f"{asked.num_uncertain} uncertain and {asked.num_audit} audit rows were asked for; ask for at least one."
        )
    rows = _candidates(predictions, reviewed)
    if not rows.size:
        there = (
            f"{len(predictions):,} predictions, all reviewed or rows already" if len(predictions) else "no prediction"
        )
        raise InputError(f"There is nothing to review: the journal holds {there}. Other --source, --since or model?")
    random = np.random.default_rng(asked.seed)
    audit = random.permutation(rows)[: asked.num_audit]
    rest = rows[~np.isin(rows, audit)]
    # A stable sort: equally uncertain rows stay in the order of their digests.
    uncertain = rest[np.argsort(-uncertainty(predictions.probabilities, asked.measure)[rest], kind="stable")][
        : asked.num_uncertain
    ]
    chosen = [Chosen(int(row), "audit", len(audit) / len(rows)) for row in audit]
    chosen += [Chosen(int(row), "uncertain", 1.0) for row in uncertain]
    return [chosen[i] for i in random.permutation(len(chosen))], len(rows)


def _candidates(predictions: Predictions, reviewed: Set[str]) -> npt.NDArray[np.int64]:
    """The rows that may be chosen, in order of their inputs' digests: the first of each input, unless one of its rows
    was reviewed.
    """
    if not len(predictions):
        return np.zeros(0, np.int64)
    inputs = words(content_digests({"input": predictions.input}))
    _, first, which = np.unique(inputs, return_index=True, return_inverse=True)
    seen = np.array([prediction in reviewed for prediction in predictions.ids])
    fresh = np.bincount(which, weights=seen) == 0
    rows: npt.NDArray[np.int64] = first[fresh]
    return rows


def uncertainty(probabilities: npt.NDArray[np.float32], measure: Measure) -> npt.NDArray[np.float64]:
    """How unsure a model is, (N,), from its probabilities (N, K)."""
    found = output_statistics(probabilities)
    return -found["margin"] if measure == "margin" else found["entropy"]
