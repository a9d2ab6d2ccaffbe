"""The gate: may the new model take the old one's place? A paired test on the same rows, overall and for each class.

McNemar's exact test (McNemar 1947, the binomial form): of the rows on which only one model is right, is the share
that the new one lost larger than chance allows? One-sided, since a gain needs no excuse. Classes are corrected
together by Holm's method (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from hpctool.errors import InputError

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Old against new on one set of rows: how many each got right, how many only one did, and the tests' p values."""

    name: str
    num_rows: int
    old_accuracy: float
    new_accuracy: float
    only_old: int
    only_new: int
    #: chance of losing so many or more, if nothing had changed
    p_worse: float
    #: chance of gaining so many or more, if nothing had changed
    p_better: float

    @property
    def gain(self) -> float:
        """New minus old accuracy."""
        return self.new_accuracy - self.old_accuracy


@dataclass(frozen=True)
class Verdict:
    """Whether the gate opens, the sentences that say why, and the numbers."""

    passed: bool
    reasons: list[str]
    comparisons: list[Comparison]

    def to_json(self) -> dict[str, Any]:
        """For gate.json."""
        rows = [asdict(one) | {"gain": one.gain} for one in self.comparisons]
        return {"format": 1, "passed": self.passed, "reasons": self.reasons, "comparisons": rows}


def compare(name: str, old_right_N: Bools, new_right_N: Bools) -> Comparison:
    """The paired comparison of two models on the same N rows; `*_right_N` says which rows each got right."""
    only_old = int((old_right_N & ~new_right_N).sum())
    only_new = int((new_right_N & ~old_right_N).sum())
    differ = only_old + only_new
    return Comparison(
        name=name,
        num_rows=len(old_right_N),
        old_accuracy=float(old_right_N.mean()) if len(old_right_N) else 0.0,
        new_accuracy=float(new_right_N.mean()) if len(new_right_N) else 0.0,
        only_old=only_old,
        only_new=only_new,
        p_worse=_at_least(only_old, differ),
        p_better=_at_least(only_new, differ),
    )


def judge(
    keep: Sequence[Comparison], per_class: Sequence[Comparison], improve: Sequence[Comparison], alpha: float
) -> Verdict:
    """Not worse beyond chance on what must be kept, overall and for each class; better on what was to improve."""
    reasons = []
    for one in keep:
        if one.p_worse < alpha:
            reasons.append(f"{one.name} got worse: {_said(one)}, p = {one.p_worse:.2g}.")
    for one, p in zip(per_class, holm([one.p_worse for one in per_class]), strict=True):
        if p < alpha:
            reasons.append(f"{one.name} got worse: {_said(one)}, p = {p:.2g} after Holm's correction.")
    for one in improve:
        if one.p_better >= alpha:
            reasons.append(f"{one.name} did not get better beyond chance: {_said(one)}, p = {one.p_better:.2g}.")
    passed = not reasons
    if passed:
        kept = "; ".join(f"{one.name} held: {_said(one)}" for one in keep)
        better = "; ".join(f"{one.name} got better: {_said(one)}, p = {one.p_better:.2g}" for one in improve)
        reasons = [sentence + "." for sentence in (kept, better) if sentence]
    return Verdict(passed, reasons, [*keep, *per_class, *improve])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that may be compared with alpha together."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = largest
    return [float(p) for p in corrected]


@dataclass(frozen=True)
class Predictions:
    """predictions.npz of an evaluation: uid, true label and predicted label of each row, and the rows' data commit."""

    uids: list[str]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    data_commit: str

    @classmethod
    def read(cls, path: Path, data_commit: str) -> Predictions:
        """Raises InputError where there is none."""
        try:
            with np.load(path, allow_pickle=False) as found:
                return cls([str(u) for u in found["uid"]], found["label"], found["predicted"], data_commit)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} holds no predictions of an evaluation: {error}.") from error

    def right(self) -> Bools:
        """Which rows were predicted rightly."""
        return np.asarray(self.labels == self.predicted)


def pair(old: Predictions, new: Predictions) -> tuple[Bools, Bools, npt.NDArray[np.int64]]:
    """Which labelled rows each model got right, and their labels, in one order.

    Raises InputError unless both evaluations are of the same rows with the same labels, and some have one.
    """
    place = {uid: number for number, uid in enumerate(new.uids)}
    if set(place) != set(old.uids):
        raise InputError(
            f"The two evaluations are of different rows ({len(old.uids)} and {len(new.uids)}) and cannot be paired. "
            "Evaluate both models on the same version and split."
        )
    order = np.array([place[uid] for uid in old.uids], np.int64)
    # A relabel keeps the uids: each model would be judged by other labels.
    num_differ = int((old.labels != new.labels[order]).sum())
    if num_differ:
        raise InputError(
            f"The two evaluations are of data commits {old.data_commit[:12]} and {new.data_commit[:12]}, in which "
            f"{num_differ} of {len(order)} labels differ: evaluate both models on the same version."
        )
    labelled = old.labels >= 0
    if not labelled.any():
        raise InputError(
            f"None of the {len(order)} rows of data commit {old.data_commit[:12]} has a label, so no model can be "
            "judged by them. Evaluate both models on a split that is labelled."
        )
    return old.right()[labelled], new.right()[order][labelled], old.labels[labelled]


def _at_least(count: int, differ: int) -> float:
    return float(stats.binom.sf(count - 1, differ, 0.5)) if differ else 1.0


def _said(one: Comparison) -> str:
    return f"{one.old_accuracy:.4f} → {one.new_accuracy:.4f} on {one.num_rows} rows"
