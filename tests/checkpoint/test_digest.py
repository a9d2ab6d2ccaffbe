"""Digests are equal exactly when the states are."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from hpctool.checkpoint import param_digest, state_digest


def test_the_library_and_the_order_do_not_matter() -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.arange(3)
    assert param_digest({"a": a, "b": b}) == param_digest({"b": torch.from_numpy(b), "a": torch.from_numpy(a)})
    assert param_digest({"a": np.asfortranarray(a)}) == param_digest({"a": a})


def test_name_dtype_shape_and_every_bit_matter() -> None:
    base = np.zeros((2, 3), np.float32)
    others: list[dict[str, Any]] = [
        {"b": base},
        {"a": base.astype(np.int32)},
        {"a": base.reshape(3, 2)},
        {"a": -base},  # -0.0 equals 0.0, but not to the bit
        {"a": base, "b": base[:0]},
    ]
    digests = {param_digest(other) for other in [{"a": base}, *others]}
    assert len(digests) == len(others) + 1


def test_scalars_and_structure_matter() -> None:
    states = [{"lr": 0.1}, {"lr": 0.2}, {"lr": [0.1]}, {"lr": (0.1,)}, {"lr": float("nan")}, {"lr": np.array(0.1)}]
    assert len({state_digest(state) for state in states}) == len(states)


def test_the_digest_is_what_the_documentation_says() -> None:
    array = np.array([1, 2], "<i2")
    assert param_digest({"w": array}) == hashlib.sha256(b'["w","int16",[2]]' + array.tobytes()).hexdigest()
