"""Which keys tell one run from another: those that a sweep varies and those that somebody typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Where and how a run runs, not what it is.
_MACHINE = {"cluster", "resources", "paths", "track", "code", "hydra", "debug"}


def typed_values(overrides: Iterable[str]) -> dict[str, Any]:
    """The keys of overrides such as `optim.lr=0.001`, `+note=x`, `~loop.clip` and their values; the last one counts."""
    values: dict[str, Any] = {}
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        values[key] = scalar(value)
    return values


def changed_values(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What was varied (first) or typed, with its value: `config` holds dotted keys, a group's value is its choice.

    Keys of the machine (cluster, resources, paths, track) are left out unless a sweep varies them.
    """
    typed = typed_values(record.get("overrides") or [])
    varied = list(record.get("varied") or [])
    wanted = varied + [key for key in typed if key.split(".")[0].split("/")[0] not in _MACHINE]
    choices = record.get("choices") or {}
    known = {**typed, **config, **choices}
    return {key: known[key] for key in dict.fromkeys(wanted) if key in known}


def scalar(text: str) -> Any:
    """The value that a word on the command line stands for: a number, true, false, null, or the word itself."""
    words: dict[str, Any] = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")
