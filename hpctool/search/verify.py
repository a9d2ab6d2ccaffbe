"""Decide everything once more: each proposal and each promotion of a journal, from what was known when it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool.errors import InputError
from hpctool.log import Entry
from hpctool.search import decide, pbt, propose, samplers
from hpctool.search.journal import Journal, State, fold
from hpctool.search.space import name_of
from hpctool.search.spec import Spec, read_spec


@dataclass
class Verified:
    """What was found. `different` are sentences on decisions that come out otherwise."""

    num_proposals: int = 0
    num_promotions: int = 0
    different: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def verify(folder: Path) -> Verified:
    """Check the journal of a sweep's folder. Raises FileNotFoundError, CorruptError, NewerFormat."""
    spec = read_spec(folder)
    journal = Journal(folder, spec)
    entries = journal.log.entries()
    found = Verified(broken=dict(journal.log.broken))
    try:
        now = samplers.version_of(spec.sampler)
    except InputError as error:
        found.notes.append(f"Proposals of the sampler cannot be made again here: {error}")
        now = ""
    if now and now != spec.sampler_version:
        found.notes.append(f"They were drawn by {spec.sampler_version}, and here is {now}; what was recorded stands.")
    can_draw = now == spec.sampler_version
    state = State(spec)
    for entry in entries:
        try:
            _check(found, state, entry, can_draw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # It lacks what a decision consists of; `fold` sets it aside as well, or takes what is there.
            found.broken[f"{entry.number:010d}"] = f"{type(error).__name__}: {error}"
        fold(state, [entry])
    found.broken |= {f"{number:010d}": reason for number, reason in state.odd.items()}
    return found


def _check(found: Verified, state: State, entry: Entry, can_draw: bool) -> None:
    op, why = entry.body.get("op"), entry.body.get("why")
    if op == "propose" and entry.body.get("t") not in state.trials:
        _check_proposal(found, state.spec, state, entry, can_draw)
    elif op == "claim" and why == "promote":
        _check_promotion(found, state, entry)


def _check_proposal(found: Verified, spec: Spec, state: State, entry: Entry, can_draw: bool) -> None:
    body = entry.body
    number, params = int(body["t"]), body["params"]
    if body["why"] == "design":
        point = spec.design[number] if number < len(spec.design) else None
    elif body["why"] == "generation":
        child = pbt.next_child(state)
        same = child is not None and (child.number, child.parent.number) == (number, body["parent"])
        point = child.point if child is not None and same else None
    elif entry.number != body["seen"] + 1:
        found.different.append(f"trial {number}: entry {entry.number} was made from {body['seen']} entries")
        return
    elif not can_draw:
        return
    else:
        point = propose.propose(state, number)
    found.num_proposals += 1
    if point is None or name_of(point) != name_of(params):
        found.different.append(f"trial {number} has {params}, and {point} comes out of what was known")


def _check_promotion(found: Verified, state: State, entry: Entry) -> None:
    body = entry.body
    trial = state.trials.get(int(body["t"]))
    if trial is None or trial.is_over or int(body["fence"]) != trial.fence + 1:
        return  # it was ignored by everybody
    found.num_promotions += 1
    rung = int(body["to"]) - 1
    # Not `may_go_on`: journals are verified in which NaN was promoted, too, where nothing better was there.
    if trial not in decide.top(state, rung):
        found.different.append(f"trial {trial.number} was promoted to rung {rung + 1} and is not among the best there")
