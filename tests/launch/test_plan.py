"""A sweep is planned as a whole: quickly, each cell once, and refused as a whole."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpctool.errors import ConfigError, HpctoolError, InputError
from hpctool.launch import grid
from hpctool.launch.plan import Plan, Request, make_plan
from tests.launch.data import make_datasets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    make_datasets(root)
    return root


def planned(root: Path, *overrides: str, multirun: bool = True) -> Plan:
    return make_plan(Request("train", ["data.name=stripes", f"paths.root={root}", *overrides]), multirun)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=range(0,1000)"],
        pytest.param(["optim.lr=1e-3,1e-2", "loop.max_steps=range(1,501)"], marks=pytest.mark.slow),
        pytest.param(
            ["model=mlp,cnn", "+task.sizes=[1,2],[3],[4]", "name=run-${seed}", "seed=range(0,200)"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_a_thousand_cells_are_planned_while_thirty_would_be_alone(root: Path, overrides: list[str]) -> None:
    began = time.monotonic()
    plan = planned(root, *overrides)
    taken_s = time.monotonic() - began
    began = time.monotonic()
    for cell in plan.cells[:3]:
        make_plan(Request("train", cell.overrides), multirun=False)
    assert len({cell.run_id for cell in plan.cells}) == len(plan.cells) >= 1000
    assert taken_s < 10 * (time.monotonic() - began)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["seed=1,2", "optim.lr=1,abc", "loop.keep_last=2,x"], "loop.keep_last.*whole number.*'x'"),
        (["seed=range(0,40)", "resources.nodes=1,0"], "resources.nodes.*it is 0"),
        (["data.name=stripes,strips"], "no dataset 'strips'"),
        *(
            pytest.param(overrides, says, marks=pytest.mark.slow)
            for overrides, says in [
                (["seed=range(0,40)", "resources.tasks_per_node=1,2,3,5"], "48 samples cannot be cut into 5"),
                (["loop.global_batch_size=48,50", "resources.tasks_per_node=3"], "50 samples"),
                (["model=mlp,cnn", "loop.ema=null,0.5,2"], "loop.ema.*it is 2"),
                (["data.train_split=train,trian"], "no split 'trian'"),
                (["name=a,'b c'"], "'b c' is no name"),
                (["resources.time=60,soon"], "resources.time.*'soon'"),
                (["+task.extra=1,'${nowhere}'"], "nowhere"),
                (["seed='${loop.${name}}'", "name=keep_last,nothing"], "loop.nothing"),
            ]
        ),
    ],
)
def test_a_value_that_does_not_fit_refuses_the_sweep_in_the_words_for_one_run(
    root: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        planned(root, *overrides)
    assert caught.value.exit_code == 2
    # The first cell that does not fit says the same when it is planned alone.
    cells = grid.expand("train", ["data.name=stripes", f"paths.root={root}", *overrides]).cells()
    assert next(filter(None, (said_alone(cell.overrides) for cell in cells))) == str(caught.value)


def said_alone(overrides: list[str]) -> str:
    try:
        make_plan(Request("train", overrides), multirun=False)
    except HpctoolError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_cells_that_are_the_same_run_are_one_cell(root: Path) -> None:
    plan = planned(root, "optim.lr=1e-3,0.001,2e-3")
    assert [cell.plain["optim"]["lr"] for cell in plan.cells] == [1e-3, 2e-3]


@pytest.mark.slow
def test_what_is_no_part_of_a_run_makes_two_runs_when_a_sweep_varies_it(root: Path) -> None:
    assert len({cell.run_id for cell in planned(root, "resources.nodes=1,2").cells}) == 2
    assert len({cell.run_id for cell in planned(root, "++resources.nodes=1,2").cells}) == 2
    assert planned(root, "resources.nodes=1").cells[0].run_id == planned(root, "resources.nodes=2").cells[0].run_id


def test_several_values_without_m_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="Add -m"):
        planned(root, "seed=1,2", multirun=False)
