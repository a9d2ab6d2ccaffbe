"""Who a run is: a digest of what was chosen and what it is made from. Asking for the same thing finds it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpctool import files
from hpctool.config import flatten
from hpctool.errors import ConfigError
from hpctool.launch.job import Input

#: Where it runs, how much it gets, where things lie, how bytes are read, what is written down and what is allowed do
#: not change what a run is. Whole sections, and dotted keys of others.
NOT_IDENTITY = ("cluster", "resources", "paths", "track", "code", "allow_regress", "data.read", "data.stage")


def run_identity(job: str, config: Mapping[str, Any], inputs: Iterable[Input], varied: Iterable[str] = ()) -> str:
    """The SHA-256 (64 hex) of a run's job, resolved config and inputs.

    `varied` are the dotted keys that a sweep varies; they always count, `resources.nodes` too.
    Raises ConfigError where the config holds what JSON has no word for.
    """
    chosen = without(config, NOT_IDENTITY)
    elsewhere = [key for key in varied if key in NOT_IDENTITY or key.split(".")[0] in NOT_IDENTITY]
    flat = flatten(dict(config)) if elsewhere else {}
    also = {key: flat[key] for key in elsewhere if key in flat}
    made_from = sorted([one.kind, one.id] for one in inputs)
    try:
        return files.sha256_bytes(files.canonical_json([job, chosen, made_from, also]))
    except (TypeError, ValueError) as error:
        raise ConfigError("?", f"a value cannot be written down: {error}.") from error


def sweep_identity(cells: Iterable[str]) -> str:
    """The SHA-256 (64 hex) of a sweep: its cells' identities in order."""
    return files.sha256_bytes(files.canonical_json(list(cells)))


def without(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A copy of nested dicts without some dotted keys; what is not touched is shared."""
    copied = dict(config)
    for key in keys:
        section, _, inner = key.partition(".")
        if inner and isinstance(copied.get(section), Mapping):
            copied[section] = without(copied[section], [inner])
        elif not inner:
            copied.pop(section, None)
    return copied
