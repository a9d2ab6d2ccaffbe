"""The next cell for a task of a claiming array: `python -m hpctool.launch.claims <submission.json>` prints which one.

Where a cluster takes fewer jobs than a sweep has cells, tasks claim cells one after the other. A claim is an entry of
a log: entry n is the n-th cell of the submission, so two tasks never have the same. A task that comes back after a
requeue first gets the cells that it had claimed and that have not ended.

Exit codes: 0 (a cell is printed), 3 none is left, 1 nor is one, and one of its own has failed, 75 the task should be
requeued: a cell of its is to be tried once more, or there is too little time for another.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import EXIT_CONTINUE, EXIT_DONE, EXIT_FAILED
from hpctool.launch.slurm import inside
from hpctool.launch.sweeplog import SweepLog
from hpctool.rundir import OVER, RunDir, now

EXIT_NONE_LEFT = 3


def main(arguments: list[str]) -> int:
    """Print the position of a cell in the submission, or say by the exit code why there is none."""
    parser = argparse.ArgumentParser(prog="hpctool.launch.claims")
    parser.add_argument("submission", type=Path)
    parser.add_argument("--slot", type=int, default=0, help="which of the task's loops asks")
    parser.add_argument("--elapsed", type=float, default=0.0, help="seconds since the task began or came back")
    parser.add_argument("--tried", default="", help="what it has got since then")
    told = parser.parse_args(arguments)
    tried = [int(position) for position in told.tried.split()]
    claims = Claims(told.submission, inside.slurm_job_id(), told.slot)
    if tried and claims.is_to_be_tried_again(tried[-1]):
        return EXIT_CONTINUE
    if tried and claims.any_left(tried) and not claims.has_time(told.elapsed, len(tried)):
        return EXIT_CONTINUE
    position = claims.next(tried)
    if position is None:
        # The script has forgotten what failed before it was requeued.
        return EXIT_FAILED if claims.any_failed() else EXIT_NONE_LEFT
    print(position)
    return EXIT_DONE


@dataclass
class Claims:
    """The claims of one loop of a task, among those of all tasks of its submission."""

    path: Path
    task: str
    slot: int = 0

    def __post_init__(self) -> None:
        body: dict[str, Any] = files.read_json(self.path)
        self.ids: list[str] = body["ids"]
        self.runs = Path(body["runs"])
        self.time_s, self.signal_delay_s = float(body["time_s"]), float(body["signal_delay_s"])
        sweep, number = SweepLog(self.path.parent.parent), int(self.path.stem)
        self.log = sweep.claims_log(number)
        submission = next(one for one in sweep.submissions() if one.number == number)
        self.cancelled = {submission.positions[cell] for cell in submission.cancelled}

    def next(self, tried: list[int]) -> int | None:
        """The position of the next cell in the submission, claimed for this loop; None if none is left."""
        for position in self._mine():
            if position not in tried and position not in self.cancelled and self._state(position) not in OVER:
                return position
        while self.log.last() < len(self.ids):
            # An entry's number belongs to one writer: whoever gets number n has the n-th cell.
            position = self.log.append({"task": self.task, "slot": self.slot, "time": now()}) - 1
            if position < len(self.ids) and self._can_begin(position):
                return position
        return None

    def any_left(self, tried: list[int]) -> bool:
        """Whether there may be another cell for this loop."""
        return self.log.last() < len(self.ids) or any(position not in tried for position in self._mine())

    def any_failed(self) -> bool:
        """Whether a cell of this loop has failed."""
        return any(self._state(position) == "failed" for position in self._mine())

    def has_time(self, elapsed_s: float, num_cells: int) -> bool:
        """Whether another cell, if it takes as long as those before, will be over before the job is told to stop."""
        told_s = self.time_s - self.signal_delay_s - inside.EARLY_S
        return elapsed_s + elapsed_s / num_cells <= told_s

    def is_to_be_tried_again(self, position: int) -> bool:
        """Whether the attempt that this loop has just made is to be followed by another."""
        return position not in self.cancelled and self._state(position) == "requeued"

    def _mine(self) -> list[int]:
        mine = (self.task, self.slot)
        return [e.number - 1 for e in self.log.entries() if (e.body["task"], e.body["slot"]) == mine]

    def _state(self, position: int) -> str:
        return RunDir(self.runs / self.ids[position]).story().state

    def _can_begin(self, position: int) -> bool:
        # Somebody may have started or cancelled it meanwhile.
        return position not in self.cancelled and self._state(position) in ("queued", "requeued")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
