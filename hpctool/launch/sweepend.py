"""The end of a sweep as a whole: whoever ends last among its cells finds out, and is the only one who says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpctool.errors import counted
from hpctool.launch import overview
from hpctool.launch.cells import Sweep, read_sweep, sweeps_folder
from hpctool.launch.sweeplog import SweepLog
from hpctool.rundir import OVER, RunDir, Story


@dataclass(frozen=True)
class End:
    """How a sweep has ended: completed, failed (a cell has) or cancelled, and a sentence."""

    id: str
    folder: str
    state: str
    text: str


#: who knows better than its cells' states how a sweep has ended: (runs, sweep) → (state, sentence), or None
tellers: list[Callable[[Path, Sweep], tuple[str, str] | None]] = []


def ended(runs: Path, sweep_id: str) -> End | None:
    """How a sweep has ended, for the first who asks after all its cells are over; None for everybody else.

    Raises UnknownName, CorruptError, OSError.
    """
    sweep = read_sweep(sweeps_folder(runs) / sweep_id)
    # The last ones run longest: mostly one look at one of them is enough.
    there = overview.begun(runs)
    for run_id in reversed(sweep.run_ids):
        if run_id in there and _story(runs, run_id).state not in OVER:
            return None
    standing = overview.cell_stories(runs, sweep, overview.quick_stories)
    if any(story.entries and story.state not in OVER for story in standing):
        return None
    if not SweepLog(sweep.path).note_over():
        return None
    told = next((found for teller in tellers if (found := teller(runs, sweep)) is not None), None)
    state, text = told or _told_by(standing)
    return End(sweep.id, str(sweep.path), state, text)


def _story(runs: Path, run_id: str) -> Story:
    return overview.quick_stories([RunDir(runs / run_id)])[0]


def _told_by(standing: list[Story]) -> tuple[str, str]:
    counts = Counter(story.state if story.entries else "never begun" for story in standing)
    state = next((one for one in ("failed", "cancelled") if counts[one]), "completed")
    cells = counted(len(standing), "cell")
    return state, f"{cells}: {', '.join(f'{number} {one}' for one, number in counts.most_common())}"
