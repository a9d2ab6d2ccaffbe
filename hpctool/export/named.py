"""Which bundle a job is told to use: by its version or alias, or by the run that made it or used it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from hpctool.errors import InputError
from hpctool.export import aliases
from hpctool.export.bundle import Bundle
from hpctool.rundir import find_run, list_run_ids


def named_bundle(paths: DictConfig, text: str) -> Bundle:
    """The bundle of a version or alias (`digits@0003`), or the one that a run exported or scored with (`export-4f2a`).

    Raises UnknownName, CorruptError, InputError for a run that has made none.
    """
    runs, models = Path(paths.runs), Path(paths.models)
    if "@" in text or (models / text).exists() or not any(one.startswith(text) for one in list_run_ids(runs)):
        return aliases.resolve(models, text)
    rundir = find_run(runs, text)
    outputs = (rundir.result() or {}).get("outputs", {})
    if "model" not in outputs:
        state = rundir.story().state
        raise InputError(f"Run {rundir.id} ({rundir.record()['job']}, {state}) has exported no bundle and used none.")
    return aliases.resolve(models, outputs["model"])
