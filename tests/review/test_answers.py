"""Facts in the order of a log become what people say now, and a decision."""

from __future__ import annotations

from typing import Any

import pytest

from hpctool.errors import InputError
from hpctool.review.answers import Answers, check_person, decide, fold, standing


def fact(client: str, label: int | None, who: str = "ann", item: str = "x") -> dict[str, Any]:
    return {"kind": "answer", "item": item, "label": label, "who": who, "when": "", "client": client}


def undo(client: str, of: str, who: str = "ann", item: str = "x") -> dict[str, Any]:
    return {"kind": "undo", "item": item, "undo": of, "who": who, "when": "", "client": client}


def said(*facts: dict[str, Any]) -> dict[str, dict[str, int | None]]:
    return {item: {who: a.label for who, a in by.items()} for item, by in fold(standing(facts)).items()}


def test_the_last_answer_of_each_person_counts() -> None:
    assert said(fact("1", 3), fact("2", 5), fact("3", 7, "bob"), fact("4", None, item="y")) == {
        "x": {"ann": 5, "bob": 7},
        "y": {"ann": None},
    }


def test_an_undo_takes_one_answer_back_and_the_one_before_stands_again() -> None:
    assert said(fact("1", 3), fact("2", 5), undo("3", "2")) == {"x": {"ann": 3}}
    assert said(fact("1", 3), undo("2", "1")) == {}
    assert said(fact("1", 3), fact("2", 5), undo("3", "1")) == {"x": {"ann": 5}}


def test_a_fact_that_comes_twice_counts_once() -> None:
    assert said(fact("1", 3), undo("2", "1"), fact("1", 3)) == {}
    assert said(fact("1", 3), fact("2", 5), undo("3", "2"), fact("4", 6), undo("3", "2")) == {"x": {"ann": 6}}


def votes(**labels: int | None) -> Answers:
    return fold(standing(fact(who, label, who) for who, label in labels.items()))


@pytest.mark.parametrize(
    ("labels", "accept", "state", "label"),
    [
        ({"ann": 3}, None, "decided", 3),
        ({"ann": 3, "bob": 3}, None, "decided", 3),
        ({"ann": 3, "bob": 5}, None, "disputed", None),
        ({"ann": 3, "bob": 5, "cleo": 5}, None, "decided", 5),
        ({"ann": 3, "bob": 5, "cleo": 5, "dan": 3}, None, "disputed", None),
        ({"ann": 3, "bob": None}, None, "decided", 3),
        ({"ann": None}, None, "skipped", None),
        ({"ann": 3, "bob": 5}, "bob", "decided", 5),
        ({"ann": 3, "bob": 5, "cleo": 5}, "ann", "decided", 3),
        ({"ann": 3, "bob": 5, "cleo": None}, "cleo", "disputed", None),
    ],
)
def test_more_than_half_decide_or_whoever_is_accepted(
    labels: dict[str, int | None], accept: str | None, state: str, label: int | None
) -> None:
    decision = decide(votes(**labels)["x"], accept)
    assert (decision.state, decision.label) == (state, label)


def test_nobody_is_called_import_or_nothing() -> None:
    assert check_person("  Zoë ") == "Zoë"
    for name in ("", "  ", "import", "a\nb", "x" * 65):
        with pytest.raises(InputError, match="cannot be the name of a person"):
            check_person(name)
