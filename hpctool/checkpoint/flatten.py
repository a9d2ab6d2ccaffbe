"""Nested state ⇄ a JSON structure and tensors by path.

A state is made of dicts (str or int keys), lists, tuples, tensors (torch or NumPy), numbers, strings, bools and None.
The structure is plain JSON in which an object with one key that begins with `~` stands for what JSON has no word for:

    {"~tensor": "model/weight"}      the tensor of that path; two places with one path are tied
    {"~tuple": [...]}                a tuple
    {"~items": [[0, …], ["a", …]]}   a dict with int keys, or with a key that begins with `~`
    {"~float": "nan"}                nan, inf or -inf
    {"~int": "0x1f…"}                an integer beyond 2⁵³, which other JSON readers would round

Paths join keys with `/`; `~` and `/` inside a key are written `~0` and `~1` (as in JSON Pointer, RFC 6901).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from hpctool.checkpoint.tensors import identity, kind_of, obstacle
from hpctool.errors import InputError

_EXACT_INT = 1 << 53
_MAX_DEPTH = 100
# The one name that the safetensors format keeps for itself.
_RESERVED = "__metadata__"


@dataclass
class Flat:
    """A state taken apart: JSON, and the tensors it names, each once."""

    structure: Any = None
    tensors: dict[str, Any] = field(default_factory=dict)


def flatten(state: Any) -> Flat:
    """Take a state apart; nothing is copied. Raises InputError that names the path of what cannot be stored."""
    flattener = _Flattener()
    flattener.flat.structure = flattener.node(state, ())
    return flattener.flat


def check_state(state: Any) -> None:
    """Refuse before the first step what a checkpoint could not hold. Raises InputError with its path."""
    flatten(state)


def unflatten(flat: Flat) -> Any:
    """Put a state together again; tied places get the very same tensor. Raises KeyError, ValueError."""
    return _rebuilt(flat.structure, flat.tensors)


class _Flattener:
    def __init__(self) -> None:
        self.flat = Flat()
        self._first_path: dict[Hashable, str] = {}

    def node(self, value: Any, keys: tuple[Any, ...]) -> Any:
        if len(keys) > _MAX_DEPTH:
            raise _refusal(keys, f"nested deeper than {_MAX_DEPTH} levels, or contains itself", "Flatten it.")
        if value is None or type(value) is bool or type(value) is str:
            return value
        if type(value) is int:
            return value if abs(value) < _EXACT_INT else {"~int": hex(value)}
        if type(value) is float:
            return value if math.isfinite(value) else {"~float": str(value)}
        if type(value) is list:
            return [self.node(v, (*keys, i)) for i, v in enumerate(value)]
        if type(value) is tuple:
            return {"~tuple": [self.node(v, (*keys, i)) for i, v in enumerate(value)]}
        # Subclasses too: a torch state_dict is an OrderedDict. A plain dict comes back.
        if isinstance(value, dict):
            return self._dict(value, keys)
        if kind_of(value):
            return {"~tensor": self._tensor(value, keys)}
        hint = "Give it as .item() or as an array." if hasattr(value, "item") else "Turn it into one of these."
        raise _refusal(keys, f"a {type(value).__module__}.{type(value).__qualname__}", hint)

    def _dict(self, value: dict[Any, Any], keys: tuple[Any, ...]) -> Any:
        for key in value:
            if type(key) not in (str, int):
                raise _refusal(keys, f"a dict with the key {key!r} ({type(key).__name__})", "Use str or int keys.")
        items = [(key, self.node(inner, (*keys, key))) for key, inner in value.items()]
        if all(type(key) is str and not key.startswith("~") for key, _ in items):
            return dict(items)
        return {"~items": [[self.node(key, keys), inner] for key, inner in items]}

    def _tensor(self, value: Any, keys: tuple[Any, ...]) -> str:
        if problem := obstacle(value):
            raise _refusal(keys, problem, "Store a plain dense tensor in its place.")
        path = path_of(keys)
        same = identity(value)
        if same is not None and same in self._first_path:
            return self._first_path[same]
        if path in self.flat.tensors or path == _RESERVED or not path.isprintable():
            raise _refusal(keys, "a tensor whose name is taken (0 beside '0'), reserved or unprintable", "Rename it.")
        self.flat.tensors[path] = value
        if same is not None:
            self._first_path[same] = path
        return path


def path_of(keys: tuple[Any, ...]) -> str:
    """`model/layers.0.weight`: the one spelling of a place in a state."""
    return "/".join(str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def _refusal(keys: tuple[Any, ...], found: str, hint: str) -> InputError:
    return InputError(
        f"The state at '{path_of(keys[:8]) or '.'}' is {found}, which a checkpoint cannot hold: it holds dicts, lists, "
        f"tuples, dense tensors and arrays, numbers, strings, bools and None. {hint}"
    )


def _rebuilt(node: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_rebuilt(inner, tensors) for inner in node]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node), "")
    if not tag.startswith("~"):
        return {key: _rebuilt(inner, tensors) for key, inner in node.items()}
    content = node[tag]
    if tag == "~tensor":
        return tensors[content]
    if tag == "~tuple":
        return tuple(_rebuilt(inner, tensors) for inner in content)
    if tag == "~items":
        return {_rebuilt(key, tensors): _rebuilt(inner, tensors) for key, inner in content}
    if tag == "~float":
        return float(content)
    if tag == "~int":
        return int(content, 16)
    raise ValueError(f"'{tag}' is no form that this hpctool knows")
