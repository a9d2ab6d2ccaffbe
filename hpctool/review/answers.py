"""Answers: what people said, as facts in a log; folded to what each of them says of each item now, and to a decision.

An answer {"kind": "answer", "item", "label", "who", "when", "client"} has a class index or null for "skipped". An undo
{"kind": "undo", "undo", …} takes back the answer whose `client` it names; what the person had said before stands
again. `client` is the action's own id: a fact that arrives twice counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hpctool.data.labels import IMPORT
from hpctool.errors import InputError

State = Literal["open", "skipped", "decided", "disputed"]

_MAX_NAME = 64


@dataclass(frozen=True)
class Answer:
    """What one person says of one item: `label` is a class index, None for skipped; `client` names the action."""

    item: str
    label: int | None
    who: str
    when: str
    client: str


#: item → person → answer
Answers = dict[str, dict[str, Answer]]


@dataclass(frozen=True)
class Decision:
    """What an item's answers come to; `label` only where they decide."""

    state: State
    label: int | None = None


def standing(facts: Iterable[Mapping[str, Any]]) -> list[Answer]:
    """The answers that were not taken back, in the order in which they were given."""
    found: dict[str, Answer | None] = {}
    for fact in facts:
        if fact["client"] in found:
            continue
        found[fact["client"]] = None
        if fact["kind"] == "undo":
            found[fact["undo"]] = None
        else:
            found[fact["client"]] = Answer(*(fact[name] for name in ("item", "label", "who", "when", "client")))
    return [answer for answer in found.values() if answer is not None]


def fold(answers: Iterable[Answer]) -> Answers:
    """What everybody says now, the last answer of each; people in the order of their first answer to the item."""
    folded: Answers = {}
    for answer in answers:
        folded.setdefault(answer.item, {})[answer.who] = answer
    return folded


def decide(said: Mapping[str, Answer], accept: str | None = None) -> Decision:
    """The label that most people gave, if more than half of those who gave one; skipping is no vote.

    With `accept`, this person's label decides wherever they gave one.
    """
    labels = {person: answer.label for person, answer in said.items() if answer.label is not None}
    if not labels:
        return Decision("skipped" if said else "open")
    if accept is not None and accept in labels:
        return Decision("decided", labels[accept])
    label, votes = Counter(labels.values()).most_common(1)[0]
    return Decision("decided", label) if votes * 2 > len(labels) else Decision("disputed")


def check_person(name: str) -> str:
    """The name as it is kept. Raises InputError where nobody can be called so."""
    name = name.strip()
    if not name or len(name) > _MAX_NAME or not name.isprintable() or name == IMPORT:
        raise InputError(
            f"'{name[:_MAX_NAME]}' cannot be the name of a person: 1 to {_MAX_NAME} letters, not '{IMPORT}'."
        )
    return name
