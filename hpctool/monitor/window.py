"""Which predictions are looked at: one model version's rows of a journal, by source, time and number.

N rows, K classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.errors import InputError, listing
from hpctool.monitor.resolve import unix_time
from hpctool.monitor.schema import Monitor
from hpctool.serve.journal import Journal
from hpctool.world import Array


@dataclass(frozen=True)
class Window:
    """The rows that were asked for, and how much of the journal they are."""

    #: what was asked, (N, …)
    input: Array
    #: calibrated probabilities, (N, K)
    probabilities: npt.NDArray[np.float32]
    #: seconds since 1970, (N,)
    time: npt.NDArray[np.float64]
    #: rows by source, most rows first; '' where requests named none
    sources: dict[str, int]
    #: of the whole journal: segments that were read or could have been, and predictions that are lost
    num_segments: int
    num_lost: int


def read_window(journal: Journal, asked: Monitor) -> Window:
    """Read what `asked` names. Raises InputError where there is none, CorruptError."""
    since, until = unix_time("monitor.since", asked.since), unix_time("monitor.until", asked.until)
    chosen: dict[str, Any] = {"source": asked.source, "model": asked.model, "until": until}
    if asked.last_rows is not None:
        # The times alone first: whatever the journal's size, only the newest rows' inputs come into memory.
        time_N = journal.read(**chosen, since=since, columns=["time"]).time
        if len(time_N) > asked.last_rows:
            since = float(np.partition(time_N, -asked.last_rows)[-asked.last_rows])
    found = journal.read(**chosen, since=since, columns=["time", "source", "input", "probabilities"])
    if not len(found):
        raise InputError(_nothing_there(journal, asked))
    arrays = found.arrays
    if asked.last_rows is not None and len(found) > asked.last_rows:  # rows of one batch share their time
        newest = np.sort(np.argsort(found.time, kind="stable")[-asked.last_rows :])
        arrays = {name: array[newest] for name, array in arrays.items()}
    names, counts = np.unique(arrays["source"], return_counts=True)
    ranked = sorted(zip(counts.tolist(), names.tolist(), strict=True), key=lambda pair: -pair[0])
    sources = {name.decode(): count for count, name in ranked}
    rows = arrays["input"], arrays["probabilities"], arrays["time"]
    return Window(*rows, sources, len(journal.segments()), journal.lost_rows)


def _nothing_there(journal: Journal, asked: Monitor) -> str:
    models = sorted({segment.origin.model for segment in journal.segments()})
    if asked.model not in models:
        return (
            f"The journal in {journal.folder} holds no prediction of {asked.model}; it has those of {listing(models)}."
        )
    keys = ("source", "since", "until")
    window = ", ".join(f"monitor.{key}={value}" for key in keys if (value := getattr(asked, key)) is not None)
    sources = sorted(set(journal.read(model=asked.model, columns=["source"]).source))
    named = listing(f"'{source}'" for source in sources)
    return f"No prediction of {asked.model} fits {window}; its sources are: {named}."
