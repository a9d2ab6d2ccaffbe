"""A sweep as a whole."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from hpctool import files
from hpctool.track.sweeps import ranges
from tests.launch.slurm.stand_ins import StandIns
from tests.track.sweeps import Cells, ago, queue_of


@pytest.mark.slow
def test_a_sweep_half_way_says_what_is_done_best_to_come_and_spent(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(*queue_of("3 RUNNING", "4 RUNNING", "5-9 PENDING Priority"))
    sweep = Cells(tmp_path, 10)
    for index, accuracy in enumerate((0.7, 0.9)):
        sweep.complete(index, accuracy)
    sweep.begin(2).end("failed", "rank 0: ValueError: no", 10)
    sweep.begin(3, since_s=100)
    sweep.begin(4, since_s=200)
    found = sweep.look()
    assert found.counts == {"queued": 5, "running": 2, "completed": 2, "failed": 1}
    assert (found.ranked[0].index, found.ranked[0].values) == (1, {"optim.lr": 0.01})
    assert found.typical_s == pytest.approx(300, abs=5)
    # 200 + 100 for what runs, 5 x 300 for what waits, two at once
    assert found.eta_s == pytest.approx(900, abs=20)
    # two whole cells, one that ran 600 s and failed, 100 s and 200 s of two: all on two GPUs
    assert found.hours.gpu_hours == pytest.approx(2 * 1500 / 3600, rel=0.05)
    assert [(group.state, group.cause, group.cells) for group in found.groups] == [
        ("failed", "rank 0: ValueError: no", [2]),
        ("queued", "waits behind jobs of higher priority", [5, 6, 7, 8, 9]),
    ]
    assert len(slurm.calls()) == 1
    json.dumps(found.to_json() | {"rows": [cell.to_json() for cell in found.cells]}, allow_nan=False)


def test_cells_that_differ_only_in_numbers_failed_for_one_cause(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says()
    sweep = Cells(tmp_path, 3)
    for index in range(3):
        sweep.begin(index).end("failed", f"rank {index}: ValueError: nan at step {index}7", 10)
    (group,) = sweep.look().groups
    assert (group.cause, group.cells) == ("rank 0: ValueError: nan at step 07", [0, 1, 2])
    assert ranges(group.cells) == "0-2"


def test_a_sweep_that_only_waits_says_for_how_long(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(*queue_of("1 RUNNING", "2 PENDING Priority"))
    sweep = Cells(tmp_path, 3)
    assert sweep.look().waits_s == pytest.approx(3600, abs=60)
    sweep.begin(0, since_s=1000).rundir.ledger.append(
        {"kind": "ended", "attempt": 1, "state": "failed", "cause": "no", "time": ago(500)}
    )
    assert sweep.look().waits_s == pytest.approx(500, abs=60)
    sweep.begin(1)
    assert sweep.look().waits_s is None


def test_what_nobody_submitted_says_so_and_asks_nobody(slurm: StandIns, tmp_path: Path) -> None:
    found = Cells(tmp_path, 3, mode="").look()
    assert found.counts == {"queued": 3}
    assert found.groups[0].cause == "it was not submitted"
    assert found.waits_s is None
    assert not slurm.calls()


def test_cells_that_were_cancelled_before_they_began_say_by_whom(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(*queue_of("0 RUNNING", "1-2 PENDING Resources"))
    sweep = Cells(tmp_path, 3)
    sweep.log.cancelled([2])
    found = sweep.look()
    assert [cell.state for cell in found.cells] == ["queued", "queued", "cancelled"]
    assert found.cells[0].cause == "starting on n1" or not found.cells[0].cause
    assert found.cells[2].cause.endswith("before it began")


def test_an_array_whose_tasks_died_before_anything_of_ours_began_says_how(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says()
    slurm.says("7_0|FAILED|127:0", "7_[1-2%4]|CANCELLED by 0|0:0", name="sacct")
    found = Cells(tmp_path, 3).look()
    assert [cell.state for cell in found.cells] == ["failed", "cancelled", "cancelled"]
    assert found.cells[0].cause == "it ended with exit code 127 before it could say why"
    assert len(slurm.calls("sacct")) == 1


def test_tasks_that_claim_cells_wait_for_all_of_them(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(*queue_of("0-1 PENDING QOSMaxJobsPerUserLimit"))
    found = Cells(tmp_path, 50, mode="claims").look()
    assert found.counts == {"queued": 50}
    assert found.groups[0].cause == "its QOS's limit on jobs per user is reached"


def test_less_is_better_where_the_metric_is_a_loss(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says()
    sweep = Cells(tmp_path, 2, loop={"best_metric": "val/loss", "best_mode": "min"})
    sweep.complete(0, 0.7)
    sweep.complete(1, 0.9)
    assert sweep.look().ranked[0].index == 1
    sweep = Cells(tmp_path / "b", 2, loop={})
    for index, perplexity in enumerate((3.0, 2.0)):
        run = sweep.begin(index)
        result = {
            "format": 1,
            "state": "completed",
            "cause": "",
            "attempts": 1,
            "metrics": {"test/perplexity": perplexity},
        }
        files.write_json(run.rundir.result_json, {**result, "started": ago(9), "ended": ago(0)})
        run.end("completed", "", 1)
    assert (sweep.look().metric, sweep.look().ranked[0].index) == (("test/perplexity", False), 1)


def test_nobody_knows_when_a_sweep_will_be_done_before_a_cell_tells(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(*queue_of("0 RUNNING", "1-3 PENDING Priority"))
    sweep = Cells(tmp_path, 4)
    run = sweep.begin(0, since_s=100)
    assert sweep.look().eta_s is None
    run.rundir.ledger.append({"kind": "resumed", "attempt": 1, "step": 0, "max_steps": 200})
    run.log([10, 20])
    path = run.rundir.metrics()
    when = datetime.datetime.now().timestamp()
    lines = [{"format": 1, "attempt": 1}, *({"s": s, "w": when - 100 + s, "m": {}} for s in (50, 100))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # It has 100 s to go, after which three take 200 s each, one after the other: it runs alone.
    assert sweep.look().eta_s == pytest.approx(700, abs=20)


def test_a_sweep_that_is_done_takes_no_time_and_asks_nobody(slurm: StandIns, tmp_path: Path) -> None:
    sweep = Cells(tmp_path, 2)
    sweep.complete(0, 0.7)
    sweep.complete(1, float("nan"))
    found = sweep.look()
    assert found.eta_s == 0.0
    assert [cell.index for cell in found.ranked] == [0]
    assert not slurm.calls()


def test_while_slurm_does_not_answer_folders_and_log_do(slurm: StandIns, tmp_path: Path) -> None:
    slurm.fails("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    sweep = Cells(tmp_path, 3)
    sweep.complete(0, 0.7)
    sweep.begin(1)
    found = sweep.look()
    assert found.counts == {"queued": 1, "running": 1, "completed": 1}


def test_damage_in_one_cell_leaves_the_others(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says()
    sweep = Cells(tmp_path, 2)
    sweep.complete(0, 0.7)
    sweep.complete(1, 0.8)
    result = sweep.runs / sweep.run_id(1) / "result.json"
    result.write_text("{")
    assert sweep.look().counts == {"completed": 2}


def test_cells_that_the_local_queue_does_not_know_any_more_were_cancelled(tmp_path: Path) -> None:
    found = Cells(tmp_path, 2, mode="local").look()
    assert found.counts == {"cancelled": 2}
    assert found.groups[0].cause == "cancelled before it began"
