"""The verdict sees what it is there to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpctool.chaos.compare import Difference
from hpctool.chaos.faults import Fault
from hpctool.chaos.listener import Stand
from hpctool.chaos.report import Outcome, Verdict
from hpctool.chaos.strike import Struck
from hpctool.launch.submit import Request
from hpctool.log import Entry
from hpctool.rundir import fold

FAULT = Fault(1, "kill", "rank", "step", "step", 3, 0, 0.0)
STAND = Stand("step", 3, 1, 0, 1234, 0.0, False)


def story(*bodies: dict[str, Any]) -> Any:
    return fold([Entry(number, body) for number, body in enumerate(bodies, 1)])


def begun(attempt: int) -> dict[str, Any]:
    return {"kind": "begun", "attempt": attempt}


def saved(attempt: int, step: int) -> dict[str, Any]:
    return {"kind": "checkpoint", "attempt": attempt, "step": step, "path": f"checkpoints/{step}", "digest": ""}


def resumed(attempt: int, step: int) -> dict[str, Any]:
    return {"kind": "resumed", "attempt": attempt, "step": step}


def verdict() -> Verdict:
    made = Verdict.of(Request("train", []), 1, ["kill"], 3, Path("chaos"))
    made.state, made.difference = "completed", Difference()
    return made


def test_going_on_from_the_newest_checkpoint_loses_nothing() -> None:
    made = verdict()
    made.look_for_lost_commits(story(begun(1), resumed(1, 0), saved(1, 5), saved(1, 10), begun(2), resumed(2, 10)))
    assert made.is_good


def test_a_commit_that_was_gone_behind_is_lost() -> None:
    made = verdict()
    made.look_for_lost_commits(story(begun(1), resumed(1, 0), saved(1, 5), saved(1, 10), begun(2), resumed(2, 5)))
    assert made.commits_lost == 1
    assert made.is_equal
    assert not made.is_good
    assert "attempt 2 went on from step 5, and 10 was committed" in made.sentences()[1]


def test_what_we_damaged_ourselves_is_not_counted_as_lost() -> None:
    made = verdict()
    made.faults = [Outcome(FAULT, attempt=1, damaged=["10"])]
    made.look_for_lost_commits(story(begun(1), saved(1, 5), saved(1, 10), begun(2), resumed(2, 5)))
    assert made.is_good


def test_a_zombie_that_commits_is_seen() -> None:
    after = story(begun(1), saved(1, 5), begun(2), saved(1, 10))
    found = Outcome.of(FAULT, STAND, 3, story(begun(1)), after, Struck("…"))
    assert found.problems == ["attempt 1 committed step 10 after 2 had begun"]


def test_steps_lost_are_those_taken_again() -> None:
    found = Outcome.of(FAULT, STAND, 13, story(begun(1)), story(), Struck("…"))
    found.see_resume(story(begun(1), resumed(1, 0), saved(1, 10), begun(2), resumed(2, 10)))
    assert (found.resumed_at, found.steps_lost) == (10, 3)


def test_different_bits_are_no_good_verdict() -> None:
    made = verdict()
    made.difference = Difference(state=["model/0.weight"], metrics={"train/loss": 7})
    assert not made.is_good
    assert made.sentences()[0].startswith("NOT the same bits.")
    assert made.difference.first_step == 7
    assert any("model/0.weight" in line for line in made.sentences())


def test_a_report_says_what_reports_of_format_1_have_said() -> None:
    golden = json.loads((Path(__file__).parent.parent / "assets" / "chaos_v1.json").read_text())
    made = verdict()
    made.faults = [Outcome(FAULT)]
    now = json.loads(json.dumps(made.to_json(), default=str))
    assert now["format"] == golden["format"]
    assert golden.keys() <= now.keys()
    assert golden["faults"][0].keys() <= now["faults"][0].keys()
    assert golden["difference"].keys() <= now["difference"].keys()
