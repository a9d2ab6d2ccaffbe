"""Everything about one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hpctool.errors import UnknownName
from hpctool.rundir import RunDir
from hpctool.track.detail import describe
from tests.launch.slurm.stand_ins import StandIns
from tests.track.samples import Sample


def test_a_killed_and_resumed_run_tells_its_attempts(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().log(range(10, 91, 10)).checkpoint(50)
    run.begin(50).log(range(60, 101, 10)).checkpoint(100).complete()
    found = describe(run.rundir)
    assert [(one["number"], one["state"], one["from_step"], one["to_step"]) for one in found["history"]] == [
        (1, "lost", 0, 50),
        (2, "completed", 50, 100),
    ]
    assert found["history"][1]["duration_s"] >= 0
    assert found["summary"]["val/accuracy"]["min_step"] == 10
    json.dumps(found, allow_nan=False)


def test_the_keys_that_scripts_rely_on_are_there(tmp_path: Path) -> None:
    found = describe(Sample(tmp_path).begin().rundir)
    promised = "id job state cause attempts step metrics param_digest slurm_job_id data_commit"
    assert set(promised.split()) <= set(found)


def test_the_rank_that_failed_first_is_shown_and_not_those_that_lost_it(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(world_size=3)
    run.fail("lost its peers", rank=0, kind="WorldError", time="2026-01-01T00:00:01Z")
    run.fail("the disk is full", rank=2, kind="OSError", time="2026-01-01T00:00:02Z", step=7)
    run.fail("too", rank=1, kind="OSError", time="2026-01-01T00:00:03Z")
    failure = describe(run.end("failed", "rank 2: OSError").rundir)["failure"]
    assert (failure["rank"], failure["message"], failure["step"], failure["num_ranks_failed"]) == (
        2,
        "the disk is full",
        7,
        3,
    )


def test_a_checkpoint_that_retention_removed_is_committed_and_has_no_size(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().checkpoint(10).checkpoint(20)
    shutil.rmtree(run.rundir.checkpoint(10))
    assert [(one["step"], one["size_bytes"]) for one in describe(run.rundir)["checkpoints"]] == [(10, None), (20, 1000)]


def test_damage_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().log([10]).fail("no").end("failed", "no")
    run.rundir.error(0).write_text("{")
    run.rundir.result_json.write_text("{")
    found = describe(run.rundir)
    assert found["state"] == "failed"
    assert found["summary"]["val/accuracy"]["last"] == 0.9
    assert len(found["problems"]) == 2


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        describe(RunDir(tmp_path / "train-00000000"))


def test_a_run_that_runs_says_how_far_it_is_what_it_waits_for_and_what_it_cost(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("42|SUSPENDED|1:00:00|0:30|2026-01-01T00:00:00|n[1-2]|None")
    run = Sample(tmp_path).begin(where="slurm", slurm_job_id="42", time="2026-01-01T00:00:00Z", world_size=4)
    run.rundir.ledger.append({"kind": "resumed", "attempt": 1, "step": 0, "max_steps": 500})
    found = describe(run.log([10, 20]).rundir)
    assert (found["state"], found["cause"], found["step"], found["max_steps"]) == (
        *("running", "suspended by Slurm", 20, 500),
    )
    assert found["queue"]["state"] == "SUSPENDED"
    assert found["queue"]["nodes"] == "n[1-2]"
    assert found["hours"]["cpu_hours"] > 1
    assert len(slurm.calls()) == 1
