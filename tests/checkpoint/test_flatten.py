"""Any state that is not refused comes back as it was."""

from __future__ import annotations

import random
from collections import OrderedDict, namedtuple
from typing import Any

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from hpctool.checkpoint import check_state
from hpctool.checkpoint.flatten import Flat, flatten, unflatten
from hpctool.errors import InputError
from hpctool.files import canonical_json

arrays = npst.arrays(
    st.one_of(npst.boolean_dtypes(), npst.integer_dtypes(), npst.floating_dtypes(), npst.complex_number_dtypes()),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
tensors = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool, torch.uint16]),
)
scalars = st.none() | st.booleans() | st.integers() | st.integers(2**60, 2**130) | st.floats() | st.text()
keys = st.text(max_size=5).filter(str.isprintable) | st.integers()
states = st.recursive(
    scalars | arrays | tensors,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return repr(one) == repr(other)


def unambiguous(state: Any) -> bool:
    """Whether no dict has both a number and its spelling as keys, which is refused."""
    if isinstance(state, dict):
        return len({str(k) for k in state}) == len(state) and all(map(unambiguous, state.values()))
    return not isinstance(state, list | tuple) or all(map(unambiguous, state))


@pytest.mark.slow
@given(states.filter(unambiguous))
def test_every_state_comes_back_as_it_was(state: Any) -> None:
    flat = flatten(state)
    # A copy of each tensor, as a file would give it: what is compared are the values.
    copies = {
        name: tensor.clone() if isinstance(tensor, torch.Tensor) else tensor.copy()
        for name, tensor in flat.tensors.items()
    }
    assert same(unflatten(Flat(flat.structure, copies)), state)
    canonical_json(flat.structure)  # no NaN, no infinity: any JSON reader can read it


def test_all_that_generators_of_random_numbers_hold_can_be_stored() -> None:
    generators = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    generators += [np.random.Generator(kind(1)).bit_generator.state for kind in (np.random.PCG64, np.random.Philox)]
    flat = flatten(generators)
    assert same(unflatten(flat), generators)


def test_tied_tensors_are_stored_once_and_come_back_tied() -> None:
    weight, array = torch.ones(3, 4), np.ones(5)
    flat = flatten({"encoder": weight, "decoder": weight.detach(), "row": weight[0], "a": array, "b": array[:]})
    assert set(flat.tensors) == {"encoder", "row", "a"}
    back = unflatten(flat)
    assert back["encoder"] is back["decoder"]
    assert back["a"] is back["b"]


def test_empty_tensors_are_never_taken_for_tied() -> None:
    assert set(flatten({"a": torch.empty(0), "b": torch.empty(0, 3)}).tensors) == {"a", "b"}


def test_paths_are_unique_whatever_the_keys_are() -> None:
    state = {"a/b": {"c": np.zeros(1)}, "a": {"b/c": np.ones(1), "b": {"c": np.ones(2)}}, "a~1b": {"c": np.ones(3)}}
    assert sorted(flatten(state).tensors) == ["a/b/c", "a/b~1c", "a~01b/c", "a~1b/c"]


@pytest.mark.slow
def test_a_module_and_its_optimizer_are_states() -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = unflatten(flatten({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


Point = namedtuple("Point", "x")
itself: list[Any] = []
itself.append(itself)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"raw", "builtins.bytes"),
        ({1, 2}, "builtins.set"),
        (np.float64(1.0), "numpy.float64"),
        (Point(1), "Point"),
        (torch.float32, "torch.dtype"),
        (np.array([None]), "an array of dtype object"),
        (np.array(["text"]), "an array of dtype <U4"),
        (np.ma.masked_array([1.0]), "MaskedArray"),
        (torch.ones(2, 2).to_sparse(), "layout torch.sparse_coo"),
        (torch.ones(2, device="meta"), "without data"),
        (torch.nn.UninitializedParameter(), "UninitializedParameter"),
        ({1.5: 0}, "the key 1.5 (float)"),
        ({True: 0}, "the key True (bool)"),
        ({0: np.ones(1), "0": np.ones(1)}, "name is taken"),
        ({"new\nline": np.ones(1)}, "unprintable"),
        (itself, "contains itself"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path(value: Any, found: str) -> None:
    with pytest.raises(InputError, match="The state at 'model/layers/0") as refusal:
        check_state({"model": OrderedDict(layers=[value])})
    assert found in str(refusal.value)


def test_a_form_from_the_future_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="~complex"):
        unflatten(Flat({"~complex": [1, 2]}))
