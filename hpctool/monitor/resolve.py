"""What can be known about a look at a model before it is submitted. Imports no torch."""

from __future__ import annotations

import datetime
from pathlib import Path

from omegaconf import DictConfig

from hpctool.config import set_value
from hpctool.errors import ConfigError, InputError
from hpctool.export.named import named_bundle
from hpctool.launch.job import Input, Resolved
from hpctool.serve.journal import open_journal


def resolve_monitor(cfg: DictConfig) -> Resolved:
    """Pin the model's version and the journal's last entry: the same question finds its run, new rows make a new one.

    Raises UnknownName, ConfigError, InputError where nothing was predicted yet.
    """
    _check(cfg)
    asked = cfg.monitor.model
    bundle = named_bundle(cfg.paths, asked)
    journal = open_journal(Path(cfg.paths.journals), bundle.name)
    newest = journal.newest_entry()
    if newest == 0:
        raise InputError(f"The journal of '{bundle.name}' in {journal.folder} is empty: nothing was predicted yet.")
    if (cfg.monitor.last_entry or 0) > newest:
        raise ConfigError("monitor.last_entry", f"the journal of '{bundle.name}' ends with entry {newest}.")
    set_value(cfg, "monitor.model", str(bundle))
    set_value(cfg, "monitor.last_entry", cfg.monitor.last_entry or newest)
    notes = [] if asked == str(bundle) else [f"{asked} is {bundle}."]
    return Resolved([Input("model", str(bundle), bundle.manifest()["digest"])], notes)


def unix_time(key: str, text: str | None) -> float | None:
    """An ISO time as seconds since 1970, UTC where it names no zone; None for None. Raises ConfigError on `key`."""
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(key, f"'{text}' is no ISO time; write 2026-01-31 or 2026-01-31T14:00:00Z.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _check(cfg: DictConfig) -> None:
    asked = cfg.monitor
    since, until = unix_time("monitor.since", asked.since), unix_time("monitor.until", asked.until)
    if since is not None and until is not None and since >= until:
        raise ConfigError("monitor.until", f"{asked.until} is not after monitor.since, {asked.since}.")
    if not 0 < asked.alpha < 1:
        raise ConfigError("monitor.alpha", f"it is {asked.alpha}; a false discovery rate lies between 0 and 1.")
    if asked.min_effect < 0:
        raise ConfigError("monitor.min_effect", f"it is {asked.min_effect}; it must be 0 or more.")
    for key in ("min_rows", "last_rows", "last_entry"):
        if asked[key] is not None and asked[key] < 1:
            raise ConfigError(f"monitor.{key}", f"it is {asked[key]}; it must be 1 or more.")
