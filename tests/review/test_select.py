"""What is chosen: the most uncertain, and an audit that says something about everything."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hpctool.errors import InputError
from hpctool.export.statistics import output_statistics
from hpctool.review.select import Selection, choose
from hpctool.serve.journal import Journal, Predictions
from tests.review.conftest import digits, predict


@pytest.fixture
def predictions(tmp_path: Path) -> Predictions:
    images, truth = digits()
    predict(tmp_path, images, truth)
    return Journal(tmp_path / "digits").read()


@pytest.mark.parametrize("measure", ["margin", "entropy"])
def test_the_uncertain_are_the_most_uncertain_of_those_that_the_audit_left(
    predictions: Predictions, measure: str
) -> None:
    chosen, _ = choose(predictions, Selection(10, 5, measure), set())  # type: ignore[arg-type]
    audit = {c.row for c in chosen if c.reason == "audit"}
    found = output_statistics(predictions.probabilities)[measure]
    ranked = np.argsort(found if measure == "margin" else -found, kind="stable")
    expected = [int(row) for row in ranked if int(row) not in audit][:10]
    assert sorted(c.row for c in chosen if c.reason == "uncertain") == sorted(expected)
    assert all(c.inclusion_probability == 1 for c in chosen if c.reason == "uncertain")
    assert all(c.inclusion_probability == 5 / 160 for c in chosen if c.reason == "audit")


@pytest.mark.slow
def test_the_audit_takes_every_row_with_the_same_probability(predictions: Predictions) -> None:
    counts = Counter(
        c.row
        for seed in range(400)
        for c in choose(predictions, Selection(40, 16, seed=seed), set())[0]
        if c.reason == "audit"
    )
    # 400 draws of 10 %: 40 expected for each row, 6 standard deviations are 36.
    assert len(counts) == 160
    assert 40 - 36 < min(counts.values()) <= max(counts.values()) < 40 + 36
    uncertain = np.argsort(output_statistics(predictions.probabilities)["margin"])[:40]
    assert np.mean([counts[int(row)] for row in uncertain]) == pytest.approx(40, abs=4)


def test_the_same_seed_chooses_the_same_and_the_order_hides_the_reason(predictions: Predictions) -> None:
    first, _ = choose(predictions, Selection(10, 10), set())
    assert choose(predictions, Selection(10, 10), set())[0] == first
    assert choose(predictions, Selection(10, 10, seed=1), set())[0] != first
    reasons = [c.reason for c in first]
    assert reasons not in (sorted(reasons), sorted(reasons, reverse=True))


def test_an_input_that_stands_twice_is_looked_at_once(tmp_path: Path) -> None:
    images, truth = digits()
    first = predict(tmp_path, images[:10], truth[:10])
    predict(tmp_path, images[:12], truth[:12])
    found = Journal(tmp_path / "digits").read()
    chosen, candidates = choose(found, Selection(100, 100), set())
    assert candidates == len(chosen) == 12
    # Whoever reviewed one of them has seen the other.
    assert choose(found, Selection(100, 100), {first[3]})[1] == 11


def test_what_was_reviewed_is_left_out_and_nothing_left_is_said(predictions: Predictions) -> None:
    reviewed = set(predictions.ids[:150])
    chosen, candidates = choose(predictions, Selection(5, 20), reviewed)
    assert candidates == 10
    assert {c.row for c in chosen} == set(range(150, 160))
    with pytest.raises(InputError, match="nothing to review: the journal holds 160 predictions, all reviewed"):
        choose(predictions, Selection(5, 5), set(predictions.ids))
    with pytest.raises(InputError, match="ask for at least one"):
        choose(predictions, Selection(0, 0), set())
