"""A run that goes on where another one was (`continue_from=<run>[@<step>|@best]`): what it inherits and what differs.

It is typed like the change it is: whatever was typed for the parent holds, unless it is typed anew. Where and with how
much it runs is asked anew. The parent, pinned to a step, is part of who the run is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpctool import config
from hpctool.launch.identity import NOT_IDENTITY, without
from hpctool.rundir import RunDir, find_run

KEY = "continue_from"
#: what the parent's parameters hold already
_INITIAL = "init_from"
_BUDGETS = {"loop.max_steps", "loop.max_epochs"}


def split(text: str) -> tuple[str, str]:
    """The run, and which of its checkpoints: a step, `best`, or empty for the newest."""
    run, _, which = text.partition("@")
    return run, which


def inherited(job: str, overrides: list[str], config_dirs: Sequence[Path], primary: str) -> list[str]:
    """What was typed for the parent that still holds, and what was typed now. Raises UnknownName, InputError."""
    named = [one.partition("=")[2] for one in overrides if _key(one) == KEY]
    # A sweep over parents is typed whole.
    if not named or named[-1] in ("", "null") or "," in named[-1]:
        return overrides
    where = [one for one in overrides if _key(one).partition(".")[0] in ("paths", "local")]
    composed = config.compose(job, where, config_dirs, primary)
    parent = find_run(Path(composed.cfg.paths.runs), split(named[-1])[0])
    return merged(parent.record().get("overrides") or [], overrides)


def merged(theirs: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The parent's overrides that still hold, and then those typed now."""
    keys = {_key(one): one.partition("=")[2] for one in typed}
    # A group that is chosen anew takes its keys with it; a mapping only adds to what is there.
    groups = tuple(f"{key}." for key, value in keys.items() if "." not in key and not value.startswith("{"))
    found = []
    for one in theirs:
        key, outer = _key(one), _key(one).partition(".")[0]
        replaced = key in keys and not keys[key].startswith("{")
        budget = key in _BUDGETS and any(other in keys for other in _BUDGETS)
        if not ({key, outer} & {*NOT_IDENTITY, KEY, _INITIAL} or replaced or budget or key.startswith(groups)):
            found.append(one)
    # `loop={max_epochs: 3}` still holds; of the two budgets the one that is typed now counts.
    other = [key for key in sorted(_BUDGETS - keys.keys()) if any(key.rpartition(".")[2] in one for one in found)]
    return [*found, *typed, *(f"{key}=null" for key in other if len(keys.keys() & _BUDGETS) == 1)]


def record(runs: Path, plain: Mapping[str, Any]) -> dict[str, Any] | None:
    """What run.json says of the run that this one goes on from: run, step, and each changed key with both values."""
    if not plain.get(KEY):
        return None
    run, step = split(str(plain[KEY]))
    parent = settings(config.to_plain(config.load(RunDir(runs / run).config_yaml)))
    mine = settings(plain)
    keys = sorted({*parent, *mine} - {KEY, _INITIAL, "name"})
    changed = {key: [parent.get(key), mine.get(key)] for key in keys if parent.get(key) != mine.get(key)}
    return {"run": run, "step": int(step), "changed": changed}


def settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that says what a run is, as dotted keys."""
    return config.flatten(without(plain, NOT_IDENTITY))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
