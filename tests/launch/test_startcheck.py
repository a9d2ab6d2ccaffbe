"""The check before a job begins: what a bad node looks like, and that a good one passes in no time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from hpctool.errors import NodeError
from hpctool.launch import closing, endings, startcheck
from hpctool.rundir import RunDir, create_run
from hpctool.world import FakeWorld, World


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = create_run(tmp_path, {"identity": "0" * 64, "job": "train", "name": "toy"}, {})
    made.attempt = made.begin({"where": "slurm"})
    return made


def test_a_good_node_passes_in_no_time_and_nothing_is_left(run: RunDir) -> None:
    began = time.process_time()
    startcheck.check(run, World(), 0)
    assert time.process_time() - began < 1
    assert list((run.path / "logs").iterdir()) == []


def test_a_node_that_cannot_write_is_named(run: RunDir, small_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    with pytest.raises(NodeError, match=r"n3 \(it cannot write into the run's folder \(File too large\)\)") as failed:
        startcheck.check(run, World(), 0)
    assert list(failed.value.nodes) == ["n3"]
    assert list((run.path / "logs").iterdir()) == []


class OtherClock(FakeWorld):
    """Three ranks, of which the last has another time of day."""

    def gather(self, value: Any) -> list[Any]:
        return [{**value, "node": f"n{rank}", "time_s": value["time_s"] - 400 * (rank == 2)} for rank in range(3)]

    def reduce(self, array: Any, operation: Any = "sum") -> Any:
        return array * 0 + 6


def test_a_clock_that_is_wrong_is_told_from_those_that_agree(run: RunDir) -> None:
    with pytest.raises(NodeError, match=r"n2 \(its clock is 400 s behind that of the others\)"):
        startcheck.check(run, OtherClock(0, 3), 0)


def test_under_slurm_the_job_comes_back_without_the_node_and_not_for_ever(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.config_yaml.write_text("cluster: {max_failures: 3, exclude: n9}\n")
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    error = NodeError({"n3": "its cpu device computes wrongly"})
    assert closing.unfit(run, "slurm", World(), error) == 75
    assert (tmp_path / "asked").read_text().splitlines() == [
        "requeue incomplete 7",
        "update JobId=7 ExcNodeList=n9,n3",
    ]
    story = run.story()
    assert (story.state, story.cause) == ("requeued", "start check: n3: its cpu device computes wrongly")
    assert endings.unfit_nodes(story) == ["n3"]
    run.attempt = run.begin({"where": "slurm"})
    assert closing.unfit(run, "slurm", World(), error) == 1
    assert run.story().state == "failed"
