"""Runs that are under way, remembered: what does not change of them, and their ledgers as far as somebody has read.

`runs/.index/underway.json`, format 1, is a cache, written like one entry of a log. Whoever had to read enough replaces
it as a whole, and the last one wins: nothing in it is believed before the run's folder has confirmed it. Where nothing
was added to a ledger that takes two calls (its folder has the same inode and time, and there is no next entry, which a
coarse clock may hide); else the newest entry that is remembered must be there unchanged, and those after it are read.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import CorruptError, HpctoolError
from hpctool.log import Entry, decode_entry, encode_entry
from hpctool.rundir import RunDir, index_folder
from hpctool.track.metrics import Last, from_json, to_json

UNDERWAY_FORMAT = 1
#: files that must have been read for what they say to be written down: a few runs are as quickly read as looked up
ENOUGH = 32
#: entries that say how far an attempt is: of several in a row only the newest counts
_PROGRESS = ("checkpoint", "progress", "unsaved")


@dataclass
class Memory:
    """One run: run.json, the configuration, and the ledger's entries when its folder had this mark (see Log.mark)."""

    record: dict[str, Any]
    config: dict[str, Any]
    mark: tuple[int, int]
    entries: list[Entry]
    #: an attempt, and what those before it have measured (metrics.read_before)
    before: tuple[int, Last] | None = None

    def before_attempt(self, attempt: int) -> Last | None:
        """What was measured before an attempt, if that is known."""
        return self.before[1] if self.before and self.before[0] == attempt else None


@dataclass
class Underway:
    """What was remembered, and what this reading has found."""

    runs: Path
    known: dict[str, Memory] = field(default_factory=dict)
    found: dict[str, Memory] = field(default_factory=dict)
    #: files that were read because the memory lacked them
    num_read: int = 0

    @classmethod
    def read(cls, runs: Path) -> Underway:
        """Read the memory; one that is missing, damaged or of a newer format is empty."""
        memory = cls(runs)
        with contextlib.suppress(HpctoolError, OSError, ValueError, KeyError, TypeError, AttributeError):
            told = decode_entry(_path(runs), files.read_small(_path(runs)))
            if told["format"] == UNDERWAY_FORMAT:
                memory.known = {run_id: _unpacked(one) for run_id, one in told["runs"].items()}
        return memory

    def recall(self, rundir: RunDir) -> Memory | None:
        """What is known of a run, brought up to its ledger; None where it must be read anew."""
        known = self.known.get(rundir.id)
        if known is None:
            return None
        log, last = rundir.ledger, known.entries[-1]
        try:
            mark = log.mark()
            if mark[0] != known.mark[0]:
                return None
            if mark == known.mark and not log.has(last.number + 1):
                return known
            path = log.path(last.number)
            if decode_entry(path, files.read_small(path)) != last.body:
                return None  # the run was made anew
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # whoever reads the run anew says it of the row
                new = log.entries(after=last.number)
        except (CorruptError, OSError):
            return None
        if log.broken:
            return None
        self.num_read += len(new)
        return replace(known, mark=mark, entries=[*known.entries, *new])

    def learn(self, run_id: str, memory: Memory) -> None:
        """Note how a run stands that is under way, and of which nothing was unreadable."""
        if memory.entries:
            self.found[run_id] = memory
            if run_id not in self.known:
                self.num_read += len(memory.entries)

    def save(self) -> None:
        """Write down what was found, if that saves the next one enough."""
        if self.num_read < ENOUGH:
            return
        told = {run_id: packed for run_id, one in self.found.items() if (packed := _packed(one)) is not None}
        with contextlib.suppress(OSError):  # somebody else's folder, a full disk
            index_folder(self.runs).mkdir(exist_ok=True)
            files.write_atomic(_path(self.runs), encode_entry({"format": UNDERWAY_FORMAT, "runs": told}))


def _path(runs: Path) -> Path:
    return index_folder(runs) / "underway.json"


def _packed(memory: Memory) -> dict[str, Any] | None:
    entries = [[one.number, one.body] for one in _thinned(memory.entries)]
    told = {"record": memory.record, "config": memory.config, "mark": memory.mark, "entries": entries}
    if memory.before:
        attempt, last = memory.before
        told["before"] = [attempt, {name: [step, to_json(value)] for name, (step, value) in last.items()}]
    try:
        files.canonical_json(told)
    except (TypeError, ValueError):  # a date or a NaN in somebody's configuration
        return None
    return told


def _unpacked(told: dict[str, Any]) -> Memory:
    inode, time_ns = told["mark"]
    entries = [Entry(int(number), dict(body)) for number, body in told["entries"]]
    memory = Memory(dict(told["record"]), dict(told["config"]), (inode, time_ns), entries)
    if before := told.get("before"):
        memory.before = before[0], {name: (step, from_json(value)) for name, (step, value) in before[1].items()}
    return memory


def _thinned(entries: list[Entry]) -> list[Entry]:
    """Without entries that the one behind them repeats with a later step; what `fold` and tables make of them stays."""
    return [one for one, following in zip(entries, [*entries[1:], None], strict=True) if not _repeats(following, one)]


def _repeats(later: Entry | None, entry: Entry) -> bool:
    if later is None or entry.body["kind"] not in _PROGRESS or later.body["kind"] != entry.body["kind"]:
        return False
    return bool(later.body.get("attempt") == entry.body.get("attempt") and later.body["step"] >= entry.body["step"])
