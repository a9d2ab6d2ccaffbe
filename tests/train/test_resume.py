"""Kill it anywhere: same bits. Real processes, real SIGKILLs; two ranks would prove nothing (parallel.py says why)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpctool.rundir import RunDir
from hpctool.track.metrics import read_metrics
from tests.train.conftest import Attempt, MakeRun

pytestmark = pytest.mark.slow

#: Everything that makes exactness hard, at once; 1, 2, 3 and 4 ranks divide 24 samples × 2 passes.
HARD = (
    "model=tangled",
    "task._target_=usersown.Faulty",
    "augment={_target_: hpctool.train.augment.RandomShift, pixels: 1}",
    "loop={max_steps: 16, global_batch_size: 24, accumulate: 2, checkpoint_every_steps: 4, eval_every_steps: 3}",
    "loop={ema: 0.9, grad_clip: 1.0}",
    "track.every_steps=3",
)

DDP = ("parallel=ddp", "parallel.bucket_mb=0.004")
FSDP = ("parallel=fsdp", "parallel.blocks=[Linear]")


def result(rundir: RunDir) -> dict[str, Any]:
    found = rundir.result()
    assert found is not None
    return found


def errors(rundir: RunDir, attempt: int) -> dict[int, dict[str, Any]]:
    """What each rank of an attempt that failed wrote down."""
    return {int(p.stem): json.loads(p.read_text()) for p in rundir.error(0, attempt).parent.glob("*.json")}


def curves(rundir: RunDir) -> dict[str, list[tuple[int, float]]]:
    """All metrics but those of the clock."""
    clocks = ("train/samples_per_s", "train/data_wait")
    return {name: points for name, points in read_metrics(rundir).items() if name not in clocks}


@pytest.mark.parametrize(
    ("num_ranks", "shared"), [(1, DDP), (3, DDP), (4, DDP), (3, FSDP), (4, FSDP)], ids=["1", "3", "4", "fsdp3", "fsdp4"]
)
def test_a_run_that_was_killed_twice_ends_with_the_same_bits(
    make_run: MakeRun, attempt: Attempt, num_ranks: int, shared: tuple[str, ...]
) -> None:
    straight, killed = make_run(*HARD, *shared, "name=straight"), make_run(*HARD, *shared, "name=killed")
    assert attempt(straight, num_ranks) == [0] * num_ranks
    assert -9 in attempt(killed, num_ranks, FAULT=f"kill {num_ranks - 1} {21 if shared == DDP else 19}")
    # The save of step 8 was under way, or just committed.
    saved = killed.story().checkpoints[-1]["step"]
    assert saved in (4, 8)
    # Again in the first step after the resume, when the two discarded passes of several ranks are over.
    assert -9 in attempt(killed, num_ranks, FAULT="kill 0 3")
    assert attempt(killed, num_ranks) == [0] * num_ranks
    assert [e["step"] for e in killed.story().of_kind("resumed")] == [0, saved, saved]
    assert result(killed)["param_digest"] == result(straight)["param_digest"]
    assert curves(killed) == curves(straight)
    assert result(killed)["metrics"] == result(straight)["metrics"]


def test_who_loses_a_peer_says_so(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(*HARD)
    codes = attempt(run, 3, FAULT="kill 1 9")
    assert codes[1] == -9
    assert {codes[0], codes[2]} == {1}
    assert {rank: error["type"] for rank, error in errors(run, 1).items()} == {0: "WorldError", 2: "WorldError"}


def test_one_rank_told_to_stop_stops_all_and_the_run_goes_on_exactly(make_run: MakeRun, attempt: Attempt) -> None:
    straight, stopped = make_run(*HARD, "name=straight"), make_run(*HARD, "name=stopped")
    assert attempt(straight, 3) == [0, 0, 0]
    # The 2 discarded passes, then 2 for each step: the 13th pass is in step 6.
    assert attempt(stopped, 3, FAULT="stop 2 13") == [75, 75, 75]
    ended = stopped.story().of_kind("ended")[-1]
    # Step 6 is validated, which is given up; else the ranks would agree at the boundary and save at step 7.
    assert (ended["cause"], ended["step"]) == ("preempted", 6)
    assert stopped.story().checkpoints[-1]["step"] == 6
    assert attempt(stopped, 3) == [0, 0, 0]
    assert result(stopped)["param_digest"] == result(straight)["param_digest"]
    assert curves(stopped) == curves(straight)


@pytest.mark.parametrize("shared", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_other_numbers_of_ranks_see_every_sample_once_in_the_same_order(
    make_run: MakeRun, attempt: Attempt, tmp_path: Path, shared: tuple[str, ...]
) -> None:
    base = (*shared, "task._target_=usersown.Faulty", "loop={max_epochs: 2, global_batch_size: 24}")
    alone, elastic = make_run(*base, "name=alone"), make_run(*base, "name=elastic")
    seen = {name: tmp_path / name for name in ("alone", "three", "two", "four")}
    for folder in seen.values():
        folder.mkdir()
    num_discarded = 2 if shared == DDP else 0
    assert attempt(alone, 1, SEEN=str(seen["alone"])) == [0]
    assert attempt(elastic, 3, SEEN=str(seen["three"]), FAULT=f"stop 0 {3 + num_discarded}") == [75] * 3
    assert attempt(elastic, 2, SEEN=str(seen["two"]), FAULT=f"stop 1 {4 + num_discarded}") == [75] * 2
    assert attempt(elastic, 4, SEEN=str(seen["four"])) == [0] * 4
    expected = steps_seen(seen["alone"], 1, 0)
    sizes = {"three": 3, "two": 2, "four": 4}
    found = [step for name, size in sizes.items() for step in steps_seen(seen[name], size, num_discarded)]
    assert found == expected
    rows = [row for step in expected for row in step]
    num_rows = len(set(rows))
    assert num_rows > 100
    assert num_rows % 24, "an epoch that ends inside a batch"
    assert sorted(rows[:num_rows]) == sorted(rows[num_rows : 2 * num_rows]) == sorted(set(rows))


def steps_seen(folder: Path, num_ranks: int, num_discarded: int) -> list[list[int]]:
    """The rows of each global batch, put together from what the ranks wrote; discarded passes left out."""
    texts = [(folder / str(rank)).read_text().splitlines() for rank in range(num_ranks)]
    passes = [[[int(row) for row in line.split()] for line in lines[num_discarded:]] for lines in texts]
    return [[row for part in parts for row in part] for parts in zip(*passes, strict=True)]


def test_a_gradient_that_is_not_finite_stops_all_ranks_at_the_same_step(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(*HARD)
    assert attempt(run, 3, FAULT="overflow 1 14") == [1, 1, 1]
    found = errors(run, 1)
    assert {error["type"] for error in found.values()} == {"OperationError"}
    assert {re.sub(r"\(.*?\)", "", error["message"]).split(":")[0] for error in found.values()} == {"Step 6"}
    assert len(found) == 3
    assert run.story().checkpoints[-1]["step"] == 4
    assert attempt(run, 3) == [0, 0, 0]


def test_a_finished_run_gives_its_result_again(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(*HARD)
    assert attempt(run, 3) == [0, 0, 0]
    first, metrics = result(run), curves(run)
    assert attempt(run, 3) == [0, 0, 0]
    again = result(run)
    assert {key: again[key] for key in ("step", "metrics", "param_digest", "outputs", "data_commit")} == {
        key: first[key] for key in ("step", "metrics", "param_digest", "outputs", "data_commit")
    }
    assert curves(run) == metrics
    assert len(run.story().checkpoints) == 4
