"""Hydra's sweep grammar becomes cells, cheaply and with the same result as composing each."""

from pathlib import Path

import pytest

from hpctool import config
from hpctool.errors import ConfigError, HpctoolError, InputError
from hpctool.launch import grid


def expanded(*overrides: str) -> list[list[str]]:
    return [cell.overrides for cell in grid.expand("train", overrides)[0]]


def test_lists_ranges_choices_and_globs_expand_with_the_last_varying_fastest() -> None:
    assert expanded("model=mlp,cnn", "seed=range(0,2)") == [
        ["model=mlp", "seed=0"],
        ["model=mlp", "seed=1"],
        ["model=cnn", "seed=0"],
        ["model=cnn", "seed=1"],
    ]
    assert expanded("seed=choice(3,5)") == [["seed=3"], ["seed=5"]]
    assert [cell[0] for cell in expanded("model=glob(*)")] == ["model=cnn", "model=mlp", "model=transformer"]


def test_a_cell_equals_what_composing_it_alone_would_give() -> None:
    overrides = ["model=mlp,cnn", "optim.lr=1e-3,0.01", "loop.global_batch_size=32,64"]
    cells, varied = grid.expand("train", overrides)
    assert varied == ["model", "optim.lr", "loop.global_batch_size"]
    assert len(cells) == 8
    for cell in cells:
        alone = config.compose("train", cell.overrides)
        assert cell.cfg == alone.cfg
        assert cell.choices == alone.choices


def test_one_value_each_is_a_sweep_of_one_cell_over_nothing() -> None:
    cells, varied = grid.expand("train", ["seed=3"])
    assert (len(cells), varied) == (1, [])


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("optim.lrr=1,2", "optim.lr"),
        ("model=mlp,nothing", "nothing"),
        ("seed=interval(0,1)", "interval"),
        ("seed=1,,2", "cannot be read"),
        ("model=glob(x*)", "x*"),
    ],
)
def test_a_bad_sweep_is_refused_in_one_sentence(override: str, word: str) -> None:
    with pytest.raises(HpctoolError) as caught:
        grid.expand("train", [override])
    assert word in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_sweep_of_absurd_size_is_refused_before_it_is_composed() -> None:
    with pytest.raises(InputError, match="1,000,000 cells"):
        grid.expand("train", ["seed=range(1000000)"])


def test_several_values_without_m_say_that_m_is_missing() -> None:
    with pytest.raises(ConfigError, match="Add -m"):
        grid.refuse_sweep(["seed=1,2"])
    grid.refuse_sweep(["seed=1", "+x=[1,2]"])


def test_a_users_folder_takes_part(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Net\n")
    cells, _ = grid.expand("train", ["model=mlp,mine"], [tmp_path])
    assert [cell.cfg.model._target_ for cell in cells] == ["hpctool.nets.MLP", "mine.Net"]
