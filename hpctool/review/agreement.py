"""Do people agree, and how often is the model right? What a queue's answers say beside the labels."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import sqrt
from typing import Any, NamedTuple

from hpctool.review.answers import Answers, State, decide
from hpctool.review.queue import Queue

_Z95 = 1.959963984540054  # of the normal distribution, two-sided


class Agreement(NamedTuple):
    """Two people on the items that both have labelled; kappa is None where chance alone would agree always."""

    a: str
    b: str
    num_items: int
    num_agreed: int
    kappa: float | None


class Accuracy(NamedTuple):
    """How many of the decided audit items the model had right, and the 95 % Wilson interval of that share."""

    num_items: int
    num_right: int
    low: float
    high: float


def agreements(answers: Answers) -> list[Agreement]:
    """Every pair of people who labelled some of the same items, in order of name."""
    people = sorted({person for said in answers.values() for person in said})
    found = []
    for a, b in combinations(people, 2):
        both = [(said[a].label, said[b].label) for said in answers.values() if a in said and b in said]
        pairs = [(x, y) for x, y in both if x is not None and y is not None]
        if pairs:
            found.append(Agreement(a, b, len(pairs), sum(x == y for x, y in pairs), cohens_kappa(pairs)))
    return found


def cohens_kappa(pairs: list[tuple[int, int]]) -> float | None:
    """Agreement beyond chance: 1 for always, 0 for what chance gives; None where both only ever say the same one."""
    n = len(pairs)
    first, second = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    by_chance = sum(first[label] * second[label] for label in first) / n**2
    if by_chance == 1:
        return None
    return (sum(x == y for x, y in pairs) / n - by_chance) / (1 - by_chance)


def audit_accuracy(queue: Queue, accept: str | None = None) -> Accuracy:
    """The model on the decided items of the random audit: an unbiased look at all that could have been chosen."""
    answers = queue.answers()
    right = []
    for item in queue.items:
        decision = decide(answers.get(item.prediction, {}), accept)
        if item.reason == "audit" and decision.label is not None:
            right.append(decision.label == item.guess)
    return Accuracy(len(right), sum(right), *wilson(sum(right), len(right)))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share; 0 to 1 without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z95**2
    centre = share + z2 / (2 * trials)
    half = _Z95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def summary(queue: Queue, accept: str | None = None) -> dict[str, Any]:
    """A queue at a glance, as JSON: counts, people, agreement, the model's accuracy on the audit."""
    answers = queue.answers()
    states: dict[State, list[str]] = {"open": [], "skipped": [], "decided": [], "disputed": []}
    for item in queue.items:
        states[decide(answers.get(item.prediction, {}), accept).state].append(item.prediction)
    people: dict[str, dict[str, int]] = {}
    for said in answers.values():
        for person, answer in said.items():
            counts = people.setdefault(person, {"labelled": 0, "skipped": 0})
            counts["skipped" if answer.label is None else "labelled"] += 1
    return {
        "review": queue.id,
        "model": queue.model,
        "dataset": queue.dataset,
        "created": queue.record["created"],
        "num_items": len(queue.items),
        "num_candidates": queue.record["num_candidates"],
        **{f"num_{state}": len(found) for state, found in states.items()},
        "disputed": states["disputed"],
        "people": people,
        "agreement": [pair._asdict() for pair in agreements(answers)],
        "audit": audit_accuracy(queue, accept)._asdict(),
        "applied": queue.applied(),
    }
