"""Comparing: only what differs, and where two runs part."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hpctool.errors import CorruptError
from hpctool.track.compare import by_seed, compare, differing, is_measured, part
from tests.track.samples import CODE, ENVIRONMENT, Sample


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    one = Sample(tmp_path, "1").begin().log([10, 20]).complete()
    newer = ENVIRONMENT.replace("numpy==2.1.0", "numpy==2.2.0")
    data = [{"kind": "dataset", "name": "digits@main", "id": "7" * 64}]
    code = {**CODE, "dirty": True}
    two = Sample(tmp_path, "2", lr=0.1, environment=newer, inputs=data, code=code).begin().log([10, 20], 0.8).complete()
    found = compare([one.rundir, two.rundir])
    assert found.config == {"optim.lr": [0.01, 0.1]}
    assert found.data == {"digits@main": ["3fa9" * 16, "7" * 64]}
    assert found.code == {"dirty": [False, True]}
    assert found.environment == {"numpy": ["2.1.0", "2.2.0"]}
    assert found.metrics["val/accuracy"] == [0.9, 0.8]
    json.dumps(found.to_json(), allow_nan=False)


def test_a_key_that_only_one_side_has_differs() -> None:
    assert differing([{"a": 1, "b": 2}, {"a": 1}]) == {"b": [2, None]}


def test_an_environment_that_nobody_wrote_down_differs_from_none(tmp_path: Path) -> None:
    newer = ENVIRONMENT.replace("numpy==2.1.0", "numpy==2.2.0")
    runs = [Sample(tmp_path, "1"), Sample(tmp_path, "2", environment=newer), Sample(tmp_path, "3")]
    runs[2].rundir.environment_txt.unlink()
    one, other, cell = (run.rundir for run in runs)
    found = compare([one, cell])
    assert (found.environment, found.no_environment) == ({}, [cell.id])
    assert compare([cell, one, other]).environment == {"numpy": [None, "2.1.0", "2.2.0"]}


def test_three_runs_are_compared_without_a_parting(tmp_path: Path) -> None:
    runs = [Sample(tmp_path, digit).begin().log([10]).complete().rundir for digit in "123"]
    found = compare(runs)
    assert found.config == {}
    assert found.parting is None
    assert len(found.metrics["val/accuracy"]) == 3


def test_the_first_step_that_differs_in_the_last_bit_is_found() -> None:
    loss = [(s, 1 / s) for s in range(1, 10)]
    other = [(s, math.nextafter(v, 2) if s >= 4 else v) for s, v in loss]
    accuracy = [(2, 0.5), (6, 0.75)]
    found = part({"loss": loss, "val/accuracy": accuracy}, {"loss": other, "val/accuracy": accuracy})
    assert (found.step, found.metric, found.values) == (4, "loss", (0.25, math.nextafter(0.25, 2)))


def test_equal_runs_do_not_part_and_nan_equals_nan() -> None:
    curves = {"loss": [(1, math.nan), (2, math.inf)], "perf/step_s": [(1, 1.0)]}
    found = part(curves, {**curves, "perf/step_s": [(1, 2.0)]})
    assert (found.step, found.num_steps) == (None, 2)


def test_times_of_the_machine_do_not_count() -> None:
    names = ["perf/x", "train/samples_per_s", "step_ms", "train/loss", "val/rms", "loss_s2"]
    assert [name for name in names if is_measured(name)] == ["perf/x", "train/samples_per_s", "step_ms"]


def test_runs_that_differ_in_their_seed_only_are_one_group_with_mean_and_spread() -> None:
    found = by_seed(
        ["a", "b", "c", "d"],
        [
            {"seed": 0, "lr": 1, "cluster.kind": "local"},
            {"seed": 1, "lr": 1},
            {"seed": 2, "lr": 1},
            {"seed": 0, "lr": 2},
        ],
        [{"acc": 0.9, "x": 1}, {"acc": 0.94}, {"acc": 0.92, "x": 2}, {"acc": 0.5}],
    )
    assert [group.ids for group in found] == [["a", "b", "c"]]
    assert found[0].metrics == {"acc": pytest.approx((0.92, 0.02))}
    assert found[0].to_json()["n"] == 3
    # The same seed twice is the same run twice, and no group.
    assert by_seed(["a", "b"], [{"seed": 0}, {"seed": 0}], [{}, {}]) == []


@pytest.mark.parametrize("diverged", [math.nan, math.inf])
def test_seeds_of_which_one_diverged_have_no_mean_and_the_other_metrics_theirs(diverged: float) -> None:
    (found,) = by_seed(
        ["a", "b"], [{"seed": 0}, {"seed": 1}], [{"acc": 0.9, "loss": 0.1}, {"acc": 0.7, "loss": diverged}]
    )
    assert found.metrics["acc"] == pytest.approx((0.8, 0.2 / math.sqrt(2)))
    assert found.to_json()["metrics"]["loss"] == {"mean": "nan", "sd": "nan"}


@pytest.mark.parametrize("text", ["a: [1, 2", "", "- 1"])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    one, two = (Sample(tmp_path, digit).begin().complete().rundir for digit in "12")
    two.config_yaml.write_text(text)
    with pytest.raises(CorruptError, match=f"{two.id}/config.yaml is damaged: it"):
        compare([one, two])


def test_hardware_that_differs_is_shown(tmp_path: Path) -> None:
    runs = [
        Sample(tmp_path, digits).begin(hardware={"cpu": cpu, "gpus": ["H100"]}).rundir
        for digits, cpu in (("aa", "Thing 9000"), ("bb", "Thing 9001"))
    ]
    assert compare(runs).hardware == {"cpu": ["Thing 9000", "Thing 9001"]}
