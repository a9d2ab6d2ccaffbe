"""Lists and dicts of a program get their earlier state back in the very objects that they hold.

A program and its optimizer know an array by the object, not by its place in the list that was registered: new ones in
the list would be restored, and never be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from hpctool.checkpoint.digest import state_digest
from hpctool.checkpoint.flatten import path_of
from hpctool.checkpoint.tensors import identity, is_sharded, kind_of, spec_of
from hpctool.errors import InputError


class Homes:
    """Which objects of a program have got their state, from all that it has registered."""

    def __init__(self) -> None:
        #: memory of what is registered outside lists and dicts (a model's parameters) → it, so that nobody else gets it
        self._owned: dict[Hashable, Any] = {}
        #: objects in lists and dicts → where, the object (so that its id stays its own), and what it has got
        self._given: dict[Hashable, tuple[str, Any, Any]] = {}
        #: id of a saved tensor → it, and the object that has its values now: what was one is one again
        self._placed: dict[int, tuple[Any, Any]] = {}

    def own(self, name: str, tensors: Sequence[Any]) -> None:
        """Note the tensors of a thing that has its state back. Raises InputError where a list or dict got one first."""
        for tensor in tensors:
            if (same := identity(tensor)) is None:
                continue
            self._owned[same] = tensor
            if same in self._given and state_digest(tensor) != state_digest(self._given[same][2]):
                raise InputError(f"{self._given[same][0]} holds memory of '{name}': register '{name}' before it.")

    def give(self, value: Any, saved: Any, keys: tuple[Any, ...]) -> Any:
        """What was saved; in `value` itself and in what it holds, wherever that fits. Raises InputError.

        Other objects take the place of those of another kind, dtype or shape. Tensors go to the device of the old one.
        """
        if kind_of(saved):
            return self._tensor(value, saved, keys)
        if isinstance(value, dict) and isinstance(saved, dict):
            return self._once(id(value), value, saved, keys, self._dict)
        if isinstance(value, list) and isinstance(saved, list):
            return self._once(id(value), value, saved, keys, self._list)
        if isinstance(value, tuple) and isinstance(saved, tuple):
            return tuple(self._items(value, saved, keys))
        return saved

    def _dict(self, value: dict[Any, Any], saved: dict[Any, Any], keys: tuple[Any, ...]) -> None:
        found = {key: self.give(value.get(key), inner, (*keys, key)) for key, inner in saved.items()}
        value.clear()
        value.update(found)

    def _list(self, value: list[Any], saved: list[Any], keys: tuple[Any, ...]) -> None:
        value[:] = self._items(value, saved, keys)

    def _items(self, value: Any, saved: Any, keys: tuple[Any, ...]) -> list[Any]:
        missing = [None] * (len(saved) - len(value))
        pairs = zip([*value, *missing], saved, strict=False)
        return [self.give(mine, inner, (*keys, number)) for number, (mine, inner) in enumerate(pairs)]

    def _tensor(self, value: Any, saved: Any, keys: tuple[Any, ...]) -> Any:
        same = identity(value) if kind_of(value) else None
        if id(saved) in self._placed:
            placed = self._placed[id(saved)][1]
            return value if same is not None and same == identity(placed) else placed
        if kind_of(value) != kind_of(saved):
            return saved
        fits = not is_sharded(value) and spec_of(value) == spec_of(saved) and _is_writable(value)
        # `best = {"params": model.state_dict()}` begins as memory of the model and becomes a copy: that needs its own.
        if not fits or (same in self._owned and state_digest(value) != state_digest(saved)):
            return saved.to(value.device) if kind_of(saved) == "torch" else saved
        if same is not None and same not in self._owned:
            self._once(same, value, saved, keys, _copy)
        self._placed[id(saved)] = saved, value
        return value

    def _once(
        self, same: Hashable, value: Any, saved: Any, keys: tuple[Any, ...], fill: Callable[[Any, Any, Any], None]
    ) -> Any:
        """Fill an object, unless that is done already. Raises InputError where it ought to become two."""
        where = f"'{path_of(keys)}'"
        if same not in self._given:
            self._given[same] = where, value, saved
            fill(value, saved, keys)
        elif state_digest(saved) != state_digest(self._given[same][2]):
            raise InputError(
                f"{self._given[same][0]} and {where} are one object in the program and were two when they were saved, "
                "so nobody can say which of them it goes on with. Begin with two: give one of them as a copy."
            )
        return value


def _copy(value: Any, saved: Any, _: tuple[Any, ...]) -> None:
    if kind_of(value) == "numpy":
        np.copyto(value, saved, casting="no")
    else:
        value.detach().copy_(saved)


def _is_writable(value: Any) -> bool:
    """Whether its values can be changed one by one: not so what is read-only, or one number seen many times."""
    if kind_of(value) == "numpy":
        return bool(value.flags.writeable)
    return not value.is_inference() and all(
        n < 2 or stride for n, stride in zip(value.shape, value.stride(), strict=True)
    )
