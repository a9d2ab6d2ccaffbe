"""The space out of Hydra's grammar."""

from __future__ import annotations

import pytest

from hpctool.errors import InputError
from hpctool.search import space
from hpctool.search.space import Axis, Space, text_of


def axis_of(text: str) -> Axis:
    found, _ = space.read([text])
    return found.axes[0]


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("a=interval(0,1)", "float", None),
        ("a=int(interval(1,12))", "int", 12),
        ("a=tag(log,interval(1e-5,1e-1))", "float", None),
        ("a=tag(log,int(interval(1,1024)))", "int", 1024),
        ("a=range(0,1,0.1)", "float", 10),
        ("a=range(32,512,32)", "int", 15),
        ("a=range(9,0,-3)", "int", 3),
        ("a=choice(x,y,x)", "choice", 2),
        ("a=1,2.5,null,[1,2]", "choice", 4),
        ("a=shuffle(range(1,5))", "int", 4),
        ("model=glob(*)", "choice", 3),
    ],
)
def test_each_form_of_hydra_is_an_axis_whose_points_lie_on_it(text: str, kind: str, count: int | None) -> None:
    axis = axis_of(text)
    assert (axis.kind, axis.count) == (kind, count)
    for u in (0.0, 0.2, 0.5, 0.99, 1 - 1e-9):
        value = axis.at(u)
        assert axis.holds(value)
        assert repr(axis.at(min(axis.coordinate(value), 1 - 1e-9))) == repr(value) or axis.count is None
    assert Space.from_json(Space([axis]).to_json()) == Space([axis])


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("a=int(interval(0.5,3.4))", 1, 3),
        ("a=int(interval(-3.5,-0.5))", -3, -1),
        ("a=tag(log,int(interval(start=0.5,end=9.5)))", 1, 9),
    ],
)
def test_whole_numbers_lie_within_the_interval_that_was_typed(text: str, low: int, high: int) -> None:
    axis = axis_of(text)
    assert (axis.kind, axis.low, axis.high) == ("int", low, high)
    assert {axis.at(u / 100) for u in range(100)} == set(range(low, high + 1))


@pytest.mark.slow
def test_what_has_one_value_is_fixed_and_a_text_survives_the_way_back() -> None:
    found, fixed = space.read(["a=1,2", "b=5", "c=range(3,4)", "d='x, y'"])
    assert [axis.key for axis in found.axes] == ["a"]
    assert fixed == ["b=5", "c=3", "d='x, y'"]
    for value in ("a b", "null", "it's", 1.5, [1, "x, y"], None, True):
        again, _ = space.read([f"a={text_of(value)},other"])
        assert again.axes[0].values[0] == value


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["a=interval(2,1)"], "its ends are swapped: interval(1.0,2.0)"),
        (["a=range(5,5)"], "has no value"),
        (["a=tag(log,interval(0,1))"], "must begin above 0"),
        (["a=tag(lgo,interval(1,2))"], "there is: log"),
        (["a=5"], "nothing to vary"),
        (["a=1,2", "a=3,4"], "varied twice"),
        (["a=interval(0,inf)"], "needs two numbers"),
        (["a=int(interval(0.2,0.8))"], "no whole number in interval(0.2,0.8)"),
        (["a=int(interval(3.5,1.5))"], "its ends are swapped: interval(1.5,3.5)"),
        (["a=glob(*)"], "there is no value to choose from"),
        (["a={x:1},{x:2}"], "no dicts or references"),
    ],
)
def test_a_space_without_a_point_is_refused_in_a_sentence(texts: list[str], why: str) -> None:
    with pytest.raises(InputError, match=r"Config|search") as error:
        space.read(texts)
    assert why in str(error.value)
    assert error.value.exit_code == 2
