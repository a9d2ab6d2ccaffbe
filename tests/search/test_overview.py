"""A search as a whole, where values are no numbers: what is best, what is told, what is exported."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpctool.cli.main import cli
from hpctool.errors import HpctoolError
from hpctool.launch.cells import find_sweep
from hpctool.search import overview, verify
from hpctool.search.export import to_optuna
from hpctool.search.journal import Journal
from tests.search.conftest import Ask, Found

#: A search over trials with rungs at the steps 1 and 3, and at their end.
WORDS = ["search=asha", "search.sampler=random", "search.rungs=[1,3]", "search.budget.max_trials=9"]
WORDS += ["x=interval(0,1)", "kind=choice(a,b)"]


def tell(journal: Journal, trial: int, values: dict[int, str | float], state: str = "paused") -> None:
    """Write down a trial that has measured these values at its rungs; the last rung is 2."""
    point = {"x": trial / 10, "kind": "a"}
    common = {"t": trial, "step": 0, "used_s": 1.0}
    journal.add(
        "propose",
        t=trial,
        params=point,
        run=f"toy-{trial}",
        slot=0,
        why="sampler",
        seen=0,
        to=0,
        expected_s=0.0,
        at_s=0.0,
        parent=None,
    )
    for rung, value in values.items():
        if rung < 2:
            journal.add("rung", **common, fence=1, rung=rung, value=value)
    if state == "paused":
        journal.add("pause", **common, fence=1)
    else:
        ends = {"2": values[2]} if 2 in values else {}
        journal.add("end", **common, fence=1, state=state, cause="", values=ends)


@pytest.fixture
def diverged(ask: Ask) -> Found:
    """Trials of which only 1 and 3 have come to a number that is any good."""
    found = ask(*WORDS, start=False)
    journal = found.journal()
    tell(journal, 0, {0: 0.1, 1: 0.1, 2: "nan"}, "completed")
    tell(journal, 1, {0: 0.4})
    tell(journal, 2, {0: 0.3, 1: "inf"})
    tell(journal, 3, {0: 0.2, 1: 0.5})
    tell(journal, 4, {0: "nan"})
    tell(journal, 5, {0: 0.6, 1: 0.6, 2: "inf"}, "completed")
    return found


def test_a_list_of_sweeps_counts_the_trials_that_are_paused(diverged: Found) -> None:
    told = CliRunner().invoke(cli, ["sweep", "list", "--root", str(diverged.runs.parent)], catch_exceptions=False)
    assert "2 completed · 4 paused" in told.stdout


def test_what_is_no_finite_number_is_never_the_best(diverged: Found) -> None:
    found = overview.look(diverged.runs, find_sweep(diverged.runs, diverged.spec.id))
    assert isinstance(found, overview.Looked)
    assert [cell.index for cell in found.ranked] == [3, 1]
    assert [row["best"] for row in found.rungs] == [0.1, 0.1, None]
    assert found.to_json()["best"]["value"] == 0.5
    told = overview.how_it_ended(diverged.runs, find_sweep(diverged.runs, diverged.spec.id))
    assert told is not None
    assert "best loss 0.5 (trial 3" in told[1]


def test_status_and_list_are_json_whatever_was_measured(diverged: Found) -> None:
    root = ["--root", str(diverged.runs.parent), "--json"]
    for words in (["status", diverged.spec.id], ["report", diverged.spec.id], ["list"]):
        done = CliRunner().invoke(cli, ["sweep", *words, *root])
        assert done.exception is None, words
        assert json.loads(done.stdout)


def test_a_search_in_which_nothing_is_finite_says_so(ask: Ask) -> None:
    found = ask(*WORDS, start=False)
    tell(found.journal(), 0, {0: "nan", 1: "nan", 2: "nan"}, "completed")
    found.journal().add("stop", why="the deadline has passed")
    told = overview.how_it_ended(found.runs, find_sweep(found.runs, found.spec.id))
    assert told == ("failed", "the deadline has passed; 1 trials, no loss was finite")


def test_a_trial_whose_end_is_nan_has_failed_for_optuna(diverged: Found, tmp_path: Path) -> None:
    target = tmp_path / "study.db"
    assert to_optuna(diverged.folder, target) == 6
    with sqlite3.connect(target) as db:
        states = dict(db.execute("select number, state from trials").fetchall())
    assert (states[0], states[5], states[1]) == ("FAIL", "COMPLETE", "PRUNED")


def test_an_export_that_fails_leaves_no_file(diverged: Found, tmp_path: Path) -> None:
    # A point of another space: no distribution of this search holds it.
    body = {"t": 6, "params": {"x": 7.0, "kind": "a"}, "run": "toy-6", "slot": 0, "why": "sampler", "seen": 0}
    diverged.journal().add("propose", **body, to=0, expected_s=0.0, at_s=0.0, parent=None)
    with pytest.raises((HpctoolError, ValueError)):
        to_optuna(diverged.folder, tmp_path / "study.db")
    assert not (tmp_path / "study.db").exists()


def test_an_entry_that_lacks_what_a_decision_needs_is_set_aside_by_verify(ask: Ask) -> None:
    found = ask(*WORDS, start=False)
    journal = found.journal()
    number = journal.add("propose", t=0, run="toy-0", slot=0, why="sampler", seen=0)
    claim = journal.add("claim", why="promote")
    assert verify.verify(found.folder).broken == {
        f"{number:010d}": "KeyError: 'params'",
        f"{claim:010d}": "KeyError: 't'",
    }


def test_a_journal_in_which_nan_was_promoted_is_verified_still(ask: Ask) -> None:
    found = ask(*WORDS, start=False)
    journal = found.journal()
    for trial in range(3):
        tell(journal, trial, {0: "nan"})
    claim = {"fence": 2, "slot": 0, "to": 1, "why": "promote", "expected_s": 0.0, "at_s": 0.0, "used_s": 1.0}
    journal.add("claim", t=0, step=0, died=False, seen=9, **claim)
    checked = verify.verify(found.folder)
    assert checked.num_promotions == 1
    assert [text for text in checked.different if "promoted" in text] == []
