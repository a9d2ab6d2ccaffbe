"""Which runs a verb is about: names, or a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpctool.rundir import RunDir, find_run


def chosen_runs(runs: Path, words: Sequence[str]) -> list[RunDir]:
    """The runs that are named, or that fit a query (words with = < > or ~), each once; those that have begun.

    Raises UnknownName, QueryError, InputError where a beginning is that of several runs.
    """
    if any(set("=<>~") & set(word) for word in words):
        from hpctool.track.query import choose
        from hpctool.track.runs import list_rows

        return [row.rundir for row in choose(list_rows(runs), " ".join(words)) if row.rundir is not None]
    found = {run.id: run for run in (find_run(runs, word) for word in words)}
    return list(found.values())
