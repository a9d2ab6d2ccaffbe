"""Arrays for a sweep: by shape, within the sweep's throttle, and as many tasks as Slurm takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpctool import config, files
from hpctool.errors import SubmitError
from hpctool.launch import arrays
from hpctool.launch.cells import Sweep
from hpctool.launch.schema import JobConfig
from hpctool.launch.sweeplog import ARRAY, CLAIMS, SweepLog
from hpctool.rundir import RunDir, create_run
from tests.launch.toy_slurm import ToySlurm

CODE = {"snapshot": "0123456789ab", "commit": ""}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The part of a configuration that every job has."""
    cfg = config.compose("run", ["cluster=slurm", "script=x"]).cfg
    keys = ("name", "seed", "code", "num_threads", "cluster", "resources", "paths")
    return config.to_plain(config.typed(type(cfg)({key: cfg[key] for key in keys}), JobConfig))


def cell(plain: dict[str, Any], **values: Any) -> dict[str, Any]:
    return config.overlaid(plain, {tuple(key.split("__")): value for key, value in values.items()})


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "runs" / "sweeps" / "toy-0123abcd"
    path.mkdir(parents=True)
    return Sweep(path, {"cells": [{"run": f"toy-{i:08x}"} for i in range(50)], "cwd": str(tmp_path), "code": CODE})


def submit(sweep: Sweep, plains: list[dict[str, Any]], max_parallel: int = 64) -> list[arrays.Array]:
    parts = arrays.shapes(enumerate(plains))
    return arrays.submit(sweep, sweep.path.parent.parent, parts, max_parallel, CODE, (), 0)


@pytest.mark.parametrize(
    ("sizes", "most", "found"),
    [
        ([3, 4], 64, [3, 4]),
        ([10], 4, [4]),
        ([10, 10], 4, [2, 2]),
        ([90, 10], 10, [9, 1]),
        ([100, 1, 1], 5, [3, 1, 1]),
        ([2, 100], 50, [1, 49]),
        ([5, 5, 5], 2, [1, 1, 1]),
    ],
)
def test_the_throttle_is_shared_in_proportion_and_never_exceeded(sizes: list[int], most: int, found: list[int]) -> None:
    assert arrays.shares(sizes, most) == found


def test_cells_that_look_the_same_to_slurm_are_one_array(plain: dict[str, Any]) -> None:
    small, large = cell(plain, resources__nodes=1), cell(plain, resources__nodes=2)
    other = cell(plain, num_threads=4)
    parts = arrays.shapes(enumerate([small, large, cell(plain, seed=5), other, cell(large, name="b")]))
    assert [part.cells for part in parts] == [[0, 2], [1, 4], [3]]
    assert [part.cfg.resources.nodes for part in parts] == [1, 2, 1]


def test_each_shape_is_an_array_with_its_share(sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm) -> None:
    plains = [plain] * 6 + [cell(plain, resources__cpus_per_task=4)] * 2
    first, second = submit(sweep, plains, max_parallel=4)
    assert (first.slurm_job_id, first.cells, first.mode) == ("101", [0, 1, 2, 3, 4, 5], ARRAY)
    assert (second.slurm_job_id, second.cells) == ("102", [6, 7])
    scripts = [Path(call).read_text() for call in toy_slurm.calls("sbatch")]
    assert "#SBATCH --array=0-5%3" in scripts[0]
    assert "#SBATCH --array=0-1%1" in scripts[1]
    assert "#SBATCH --cpus-per-task=4" in scripts[1]


@pytest.mark.slow
def test_more_shapes_than_may_run_at_once_stand_behind_each_other(
    sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm
) -> None:
    submit(sweep, [cell(plain, resources__cpus_per_task=i + 1) for i in range(5)], max_parallel=2)
    behind = [call.split()[0] if call.startswith("-") else "" for call in toy_slurm.calls("sbatch")]
    assert behind == [
        *("", ""),
        *("--dependency=afterany:101", "--dependency=afterany:102", "--dependency=afterany:103"),
    ]


def test_tasks_claim_cells_where_an_array_may_not_be_so_long(
    sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm
) -> None:
    toy_slurm.set("max_array", 4)
    (array,) = submit(sweep, [plain] * 10, max_parallel=8)
    assert (array.mode, array.num_tasks, len(array.cells)) == (CLAIMS, 4, 10)
    toy_slurm.set("max_array", 10)
    (array,) = submit(sweep, [plain] * 10, max_parallel=8)
    assert (array.mode, array.num_tasks) == (ARRAY, 10)


def test_a_limit_on_jobs_that_nobody_told_is_found_by_asking(
    sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm
) -> None:
    toy_slurm.set("max_submit", 3)
    (array,) = submit(sweep, [plain] * 10, max_parallel=8)
    assert (array.mode, array.num_tasks) == (CLAIMS, 2)
    assert toy_slurm.tasks == ["101_0", "101_1"]
    assert [one.is_refused for one in SweepLog(sweep.path).submissions()] == [True, True, False]


def test_any_other_refusal_is_passed_on_with_the_scripts_path(
    sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm
) -> None:
    toy_slurm.set("refuse", "sbatch: error: Batch job submission failed: Invalid qos specification")
    with pytest.raises(SubmitError, match=r"Invalid qos.*/0001.sh"):
        submit(sweep, [plain] * 10)
    assert len(toy_slurm.calls("sbatch")) == 1


def test_several_cells_share_an_allocation(sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm) -> None:
    small = cell(plain, cluster__cells_at_once=4, resources__cpus_per_task=2, resources__mem_gb=1.5)
    (array,) = submit(sweep, [small] * 10, max_parallel=8)
    assert (array.mode, array.num_tasks) == (CLAIMS, 2)
    script = Path(toy_slurm.calls("sbatch")[-1]).read_text()
    assert "#SBATCH --ntasks-per-node=4" in script
    assert "#SBATCH --mem=6GB" in script
    assert "for slot in 0 1 2 3; do" in script


def test_no_more_cells_share_an_allocation_than_may_run_at_once(
    sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm
) -> None:
    (array,) = submit(sweep, [cell(plain, cluster__cells_at_once=4)] * 10, max_parallel=3)
    assert array.num_tasks == 1
    assert "for slot in 0 1 2; do" in Path(toy_slurm.calls("sbatch")[-1]).read_text()


@pytest.mark.slow
def test_what_runs_already_counts(sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm) -> None:
    submit(sweep, [plain] * 3, max_parallel=4)
    submit(sweep, [plain] * 5, max_parallel=4)
    assert "#SBATCH --array=0-4%1" in Path(toy_slurm.calls("sbatch")[-1]).read_text()
    # Nothing is free: this one takes the place of the array that has the least left.
    submit(sweep, [plain] * 5, max_parallel=4)
    call = toy_slurm.calls("sbatch")[-1]
    assert call.startswith("--dependency=afterany:102 ")
    assert "#SBATCH --array=0-4%1" in Path(call.split()[-1]).read_text()


def test_a_submission_lists_cells_and_runs_in_the_order_of_tasks(
    sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm
) -> None:
    submit(sweep, [plain] * 3)
    body = files.read_json(sweep.path / "submissions" / "0001.json")
    assert (body["cells"], body["ids"]) == ([0, 1, 2], sweep.run_ids[:3])
    assert (body["time_s"], body["signal_delay_s"]) == (3600, 120)


def test_a_cell_that_has_a_folder_says_in_its_ledger_that_it_waits(
    sweep: Sweep, plain: dict[str, Any], toy_slurm: ToySlurm
) -> None:
    runs = sweep.path.parent.parent
    run = create_run(runs, {"name": "toy", "identity": "00000001" * 8, "job": "run", "code": CODE}, {})
    assert run.id == sweep.run_ids[1]
    parts = arrays.shapes(enumerate([plain] * 3))
    arrays.submit(sweep, runs, parts, 64, CODE, {1}, 0)
    assert (run.story().state, run.story().slurm_job_id) == ("queued", "101_1")
    toy_slurm.set("max_array", 2)
    arrays.submit(sweep, runs, parts, 64, CODE, {1}, 0)
    # Whoever claims it gives it a job; until then the number of the array tells late news from new ones.
    assert run.ledger.entries()[-1].body["array"] == "102"
    RunDir(run.path).begin({"where": "slurm", "slurm_job_id": "102_0"})
    run.ledger.append({"kind": "submitted", "where": "slurm", "slurm_job_id": "", "array": "102", "time": ""})
    assert RunDir(run.path).story().state == "running"
