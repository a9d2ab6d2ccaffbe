"""Hydra's sweep grammar becomes cells, cheaply and with the same result as composing each."""

from pathlib import Path

import pytest

from hpctool import config
from hpctool.errors import ConfigError, HpctoolError, InputError
from hpctool.launch import grid


def expanded(*overrides: str) -> list[list[str]]:
    return [cell.overrides for cell in grid.expand("train", overrides).cells()]


@pytest.mark.slow
def test_lists_ranges_choices_and_globs_expand_with_the_last_varying_fastest() -> None:
    assert expanded("model=mlp,cnn", "seed=range(0,2)") == [
        ["model=mlp", "seed=0"],
        ["model=mlp", "seed=1"],
        ["model=cnn", "seed=0"],
        ["model=cnn", "seed=1"],
    ]
    assert expanded("seed=choice(3,5)") == [["seed=3"], ["seed=5"]]
    assert [cell[0] for cell in expanded("model=glob(*)")] == ["model=cnn", "model=mlp", "model=transformer"]


@pytest.mark.slow
def test_cells_of_the_same_group_choices_share_one_composed_config() -> None:
    whole = grid.expand("train", ["model=mlp,cnn", "optim.lr=1e-3,0.01", "+task.sizes=[1,2],[3]", "seed=3"])
    assert whole.varied == ["model", "optim.lr", "+task.sizes"]
    cells = list(whole.cells())
    assert len(cells) == 8
    assert len({id(cell.combination) for cell in cells}) == 2
    assert cells[0].combination.keys == ["optim.lr", "task.sizes"]
    assert [cell.values for cell in cells[:4]] == [(1e-3, [1, 2]), (1e-3, [3]), (0.01, [1, 2]), (0.01, [3])]
    for cell in (cells[0], cells[4]):
        assert cell.combination.composed == config.compose("train", cell.overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.lr=1,${seed}"],
        ["optim.lr=1,???"],
        ["augment={a: 1},{a: 2}"],
        ["~task=1,2"],
        ["loop={keep_last: 3}", "loop.keep_last=2,4"],
        ["optim.lr=1,2", "optim.lr=3,4"],
    ],
    ids=" ".join,
)
def test_values_that_depend_on_others_are_composed(overrides: list[str]) -> None:
    axes = grid.expand("train", overrides).axes
    assert all(axis.values is None for axis in axes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("optim.lrr=1,2", "optim.lr"),
        ("model=null,mlp", "model"),
        ("model=mlp,nothing", "nothing"),
        ("seed=interval(0,1)", "interval"),
        ("seed=1,,2", "cannot be read"),
        ("model=glob(x*)", "x*"),
    ],
)
def test_a_bad_sweep_is_refused_in_one_sentence(override: str, word: str) -> None:
    with pytest.raises(HpctoolError) as caught:
        list(grid.expand("train", [override]).cells())
    assert word in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_sweep_of_absurd_size_is_refused_before_it_is_composed() -> None:
    with pytest.raises(InputError, match="1,000,000 cells"):
        grid.expand("train", ["seed=range(1000000)"])


def test_several_values_without_m_say_that_m_is_missing() -> None:
    with pytest.raises(ConfigError, match="Add -m"):
        grid.refuse_sweep(["seed=1,2"])
    grid.refuse_sweep(["seed=1", "+x=[1,2]"])


@pytest.mark.slow
def test_a_users_folder_takes_part(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Net\n")
    cells = grid.expand("train", ["model=mlp,mine"], [tmp_path]).cells()
    assert [cell.combination.composed.cfg.model._target_ for cell in cells] == ["hpctool.nets.MLP", "mine.Net"]
