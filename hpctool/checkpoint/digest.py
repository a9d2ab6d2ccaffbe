"""Digests that prove two states equal to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from hpctool.checkpoint.flatten import flatten
from hpctool.checkpoint.tensors import as_bytes, is_sharded, spec_of
from hpctool.files import canonical_json, sha256_bytes


def param_digest(tensors: Mapping[str, Any]) -> str:
    """The SHA-256 over name|dtype|shape|values in order of name, 64 hex digits.

    `tensors`: torch or NumPy, for example `model.state_dict()`. Which library, device or memory layout holds a value
    does not matter; a different name, dtype, shape or bit does. Sharded ones are put together one after the other, or
    the whole would not fit where the parts do. Collective where there are any.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        one = tensors[name].full_tensor() if is_sharded(tensors[name]) else tensors[name]
        spec = spec_of(one)
        digest.update(canonical_json([name, spec.dtype, list(spec.shape)]))
        digest.update(as_bytes(one).data)
    return digest.hexdigest()


def state_digest(state: Any) -> str:
    """The digest of a whole nested state: its tensors, its scalars and its structure. Raises InputError."""
    flat = flatten(state)
    return sha256_bytes(canonical_json([flat.structure, param_digest(flat.tensors)]))
