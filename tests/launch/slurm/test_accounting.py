"""sacct is asked last, once for all, and not at all where there is no accounting."""

from __future__ import annotations

import json
import pwd

import pytest

from hpctool.launch.slurm.accounting import Ended, ends, parse
from tests.launch.slurm.stand_ins import StandIns


def test_all_jobs_are_asked_for_in_one_call_and_arrays_as_a_whole(slurm: StandIns) -> None:
    slurm.says("42|TIMEOUT|0:0", "42.batch|CANCELLED|0:15", "7_1|NODE_FAIL|0:0", "7_2|COMPLETED|0:0", name="sacct")
    found, there = ends(["42", "7_1", "7_2", "7_3"])
    assert there
    assert {job_id: ended.state for job_id, ended in found.items()} == {
        **{"42": "TIMEOUT", "7_1": "NODE_FAIL", "7_2": "COMPLETED"},
    }
    (call,) = slurm.calls("sacct")
    assert call.endswith("--jobs=42,7")


def test_what_it_said_is_remembered_and_what_it_does_not_know_is_not_asked_at_once(slurm: StandIns) -> None:
    slurm.says("42|FAILED|3:0", name="sacct")
    ends(["42", "43"])
    slurm.says("43|FAILED|1:0", name="sacct")
    assert set(ends(["42", "43"])[0]) == {"42"}
    assert len(slurm.calls("sacct")) == 1
    kept = json.loads(slurm.cache("sacct").read_text())
    slurm.cache("sacct").write_text(json.dumps(kept | {"asked": {"43": 0}}))
    assert set(ends(["42", "43"])[0]) == {"42", "43"}
    assert slurm.calls("sacct")[1].endswith("--jobs=43")


def test_that_there_is_no_accounting_is_remembered(slurm: StandIns) -> None:
    slurm.fails("Slurm accounting storage is disabled", name="sacct")
    assert ends(["42"]) == ({}, False)
    assert ends(["42", "43"]) == ({}, False)
    assert len(slurm.calls("sacct")) == 1


def test_a_job_that_runs_has_not_ended() -> None:
    assert parse("42|RUNNING|0:0\n43|REQUEUED|0:0\nnonsense\n") == {}


def test_cells_that_were_cancelled_together_are_taken_apart() -> None:
    found = parse("7_[3-4,6%2]|CANCELLED by 0|0:0\n7_0|FAILED|1:0")
    assert {job_id: ended.word for job_id, ended in found.items()} == {
        **{"7_3": "cancelled", "7_4": "cancelled", "7_6": "cancelled", "7_0": "failed"},
    }


def test_a_step_that_ran_out_of_memory_tells_it_of_its_job() -> None:
    found = parse("42|FAILED|1:0\n42.batch|FAILED|1:0\n42.0|OUT_OF_MEMORY|0:125\n")
    assert found["42"].cause == "out of memory"


@pytest.mark.parametrize(
    ("line", "word", "cause"),
    [
        ("1|CANCELLED by 0|0:0", "cancelled", f"cancelled in Slurm by {pwd.getpwuid(0).pw_name}"),
        ("1|CANCELLED by 4123456|0:0", "cancelled", "cancelled in Slurm by user 4123456"),
        ("1|NODE_FAIL|0:0", "failed", "its node was lost"),
        ("1|FAILED|127:0", "failed", "it ended with exit code 127 before it could say why"),
        ("1|FAILED|0:9", "failed", "signal 9 ended it before it could say why"),
        (
            "1|FAILED|0:53",
            "failed",
            "the node that was to begin it could not open its log: there the run's folder is missing, or takes no files"
            "; cluster.exclude leaves a node out",
        ),
        ("1|COMPLETED|0:0", "failed", "Slurm calls it completed, but it did not write down its end"),
    ],
)
def test_an_end_has_a_word_and_a_cause(line: str, word: str, cause: str) -> None:
    ended = parse(line)["1"]
    assert (ended.word, ended.cause) == (word, cause)


def test_a_state_that_nobody_knows_is_said_as_it_is() -> None:
    assert Ended("FAILED").cause == "it ended with an error before it could say why"
    assert Ended("BROKEN").cause == "Slurm says BROKEN"
