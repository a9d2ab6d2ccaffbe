"""Numbers about people and about the model, checked against ones worked out elsewhere."""

from __future__ import annotations

import pytest
from sklearn.metrics import cohen_kappa_score

from hpctool.review.agreement import audit_accuracy, cohens_kappa, summary, wilson
from hpctool.review.queue import Queue
from tests.review.conftest import MakeQueue


@pytest.mark.parametrize(
    ("a", "b"),
    [([0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 2, 2]), ([0, 0, 1, 1], [1, 1, 0, 0]), ([0, 1, 0, 1], [0, 1, 0, 1])],
)
def test_kappa_is_that_of_scikit_learn(a: list[int], b: list[int]) -> None:
    assert cohens_kappa(list(zip(a, b, strict=True))) == pytest.approx(cohen_kappa_score(a, b))


def test_kappa_is_unknown_where_chance_alone_agrees_always() -> None:
    assert cohens_kappa([(3, 3), (3, 3)]) is None


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433), (81, 100, 0.7222, 0.8749), (0, 0, 0.0, 1.0)],
)
def test_the_wilson_interval_is_that_of_the_textbooks(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_the_models_accuracy_comes_from_decided_audit_items_only(make: MakeQueue) -> None:
    queue = make(6, 5)
    audit = [item for item in queue.items if item.reason == "audit"]
    for item in queue.items:
        queue.answer(item.prediction, (item.guess + 1) % 10, "ann", item.prediction)
    assert audit_accuracy(queue)[:2] == (5, 0)
    for item in audit[:3]:
        queue.answer(item.prediction, item.guess, "ann", f"again-{item.prediction}")
    queue.answer(audit[3].prediction, None, "ann", "skip")
    queue.answer(audit[4].prediction, audit[4].guess, "bob", "bob")
    assert audit_accuracy(queue)[:2] == (3, 3)
    assert audit_accuracy(queue, accept="bob")[:2] == (4, 4)


def test_a_summary_counts_items_people_and_agreement(queue: Queue) -> None:
    first, second, third, fourth = (item.prediction for item in queue.items[:4])
    for item, label in ((first, 1), (second, 2), (third, None)):
        queue.answer(item, label, "ann", f"ann-{item}")
    for item, label in ((first, 1), (second, 3), (fourth, 4)):
        queue.answer(item, label, "bob", f"bob-{item}")
    found = summary(queue)
    counts = {name: found[f"num_{name}"] for name in ("items", "open", "skipped", "decided", "disputed")}
    assert counts == {"items": 12, "open": 8, "skipped": 1, "decided": 2, "disputed": 1}
    assert found["disputed"] == [second]
    assert found["people"] == {"ann": {"labelled": 2, "skipped": 1}, "bob": {"labelled": 3, "skipped": 0}}
    (pair,) = found["agreement"]
    assert (pair["a"], pair["b"], pair["num_items"], pair["num_agreed"]) == ("ann", "bob", 2, 1)
    assert pair["kappa"] == pytest.approx(1 / 3)
    assert summary(queue, accept="bob")["num_disputed"] == 0
