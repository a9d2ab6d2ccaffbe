"""Things of a program's: how the state of each is taken, and how it is given back to the same object."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpctool.checkpoint.digest import param_digest
from hpctool.checkpoint.flatten import path_of
from hpctool.checkpoint.homes import Homes
from hpctool.checkpoint.tensors import kind_of, spec_of
from hpctool.errors import InputError
from hpctool.files import canonical_json, sha256_bytes
from hpctool.world import World


@dataclass(frozen=True)
class Thing:
    """One object of the program: its state now, and how it goes back to an earlier one."""

    take: Callable[[], Any]
    give: Callable[[Any], Any]
    #: whether it is a list or dict, which may hold what is another thing's
    is_container: bool = False


def thing(name: str, value: Any, homes: Homes) -> Thing:
    """The ways in and out of an object. Raises InputError for one that cannot be changed where it is."""
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return Thing(value.state_dict, value.load_state_dict)
    if isinstance(value, dict | list):
        return Thing(lambda: value, lambda saved: homes.give(value, saved, (name,)), is_container=True)
    if kind_of(value) == "numpy":
        return Thing(lambda: value, lambda saved: np.copyto(_same(name, value, saved), saved, casting="no"))
    if kind_of(value) == "torch":
        return Thing(lambda: value, lambda saved: _same(name, value, saved).detach().copy_(saved))
    if isinstance(value, np.random.Generator):
        return Thing(lambda: value.bit_generator.state, lambda saved: setattr(value.bit_generator, "state", saved))
    if isinstance(value, random.Random):
        return Thing(value.getstate, value.setstate)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Generator):
        return Thing(value.get_state, value.set_state)
    raise InputError(
        f"'{name}' is a {type(value).__name__}, which could not be set to its earlier state where it is. Register what "
        "has state_dict and load_state_dict, arrays, tensors, random generators, or a list or dict of arrays, tensors, "
        "numbers and texts."
    )


def leaves(state: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The paths and values of a nested state's ends: tensors and scalars, and what is empty."""
    if isinstance(state, dict | list | tuple) and state:
        for key, inner in state.items() if isinstance(state, dict) else enumerate(state):
            yield from leaves(inner, (*keys, key))
    else:
        yield path_of(keys), state


def replaced(state: Any, ends: Mapping[str, Any], keys: tuple[Any, ...] = ()) -> Any:
    """A copy of a nested state with other values at some of its ends."""
    if isinstance(state, dict) and state:
        return {key: replaced(inner, ends, (*keys, key)) for key, inner in state.items()}
    if isinstance(state, list | tuple) and state:
        return type(state)(replaced(inner, ends, (*keys, key)) for key, inner in enumerate(state))
    return ends.get(path_of(keys), state)


def of_single_ranks(world: World, state: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What the ranks do not have in common: names whose layout differs, and paths whose values do. Collective.

    Nobody needs to know beforehand what is the same everywhere: buffers of batch norm are not, samplers may not be.
    """
    if world.size == 1:
        return [], []
    layouts = {name: _digest([[path, _layout(end)] for path, end in leaves(one)]) for name, one in state.items()}
    values = {path: _value(end) for path, end in leaves(dict(state))}
    if len(set(world.gather(_digest([layouts, values])))) == 1:
        return [], []
    everywhere = world.gather([layouts, values])
    names = [name for name in layouts if len({theirs[0].get(name) for theirs in everywhere}) > 1]
    paths = [path for path in values if len({theirs[1].get(path) for theirs in everywhere}) > 1]
    return names, [path for path in paths if path.split("/")[0] not in names]


def _layout(end: Any) -> list[Any]:
    return [*spec_of(end)] if kind_of(end) else [type(end).__name__]


def _value(end: Any) -> str:
    return param_digest({"": end}) if kind_of(end) else _digest(repr(end))


def _digest(value: Any) -> str:
    return sha256_bytes(canonical_json(value))


def _same(name: str, value: Any, saved: Any) -> Any:
    """The value, if what was saved fits into it."""
    if kind_of(saved) != kind_of(value) or spec_of(saved) != spec_of(value):
        raise InputError(
            f"'{name}' is a {_words(value)}, and the checkpoint holds a {_words(saved)}. The program has changed "
            "since: give it a folder of its own, or begin anew."
        )
    return value


def _words(value: Any) -> str:
    spec = spec_of(value) if kind_of(value) else None
    return f"{spec.kind} {spec.dtype} of shape {list(spec.shape)}" if spec else type(value).__name__
