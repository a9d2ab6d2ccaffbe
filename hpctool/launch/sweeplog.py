"""What happened to a sweep as a whole, and to those of its cells that have no run folder to say so themselves.

sweeps/<id>/log/           a log of facts
  submitting {cells, mode, share, code, …}      before anybody is asked; a submission is named by this entry's number
  submitted  {submission, slurm_job_id}         Slurm has taken it; without this one nobody knows
  refused    {submission, reason}               Slurm has not taken it
  child      {child}                            a run or sweep that comes after this one
  cancelled  {cells, time, by}                  these will not begin; what has begun says so itself
  over       {}                                 all has ended, and somebody is told so
  changing   {process}                          sweep.json gets further cells, until `changed` or the process is gone
  changed    {}
sweeps/<id>/submissions/   NNNN.json the cells of a submission, in order of task; NNNN.sh its script; logs/
sweeps/<id>/claims/NNNN/   a log: entry n is the n-th cell of submission NNNN, claimed by the task that wrote it

In an array (`mode: array`) task i runs cell i of its submission. Where tasks claim cells (`claims`), each takes the
next one until none is left (claims.py). `local` cells are in the local queue. Cells are written as ranges: `0-99,103`.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool.errors import ConflictError
from hpctool.launch import handover
from hpctool.launch.result import own_process
from hpctool.launch.slurm.queue import QUEUE, Answer, Queue, cluster_name
from hpctool.launch.slurm.standing import is_elsewhere, parse_time_s
from hpctool.log import Entry, Log
from hpctool.rundir import Story, fold, now, who

#: How often it is looked whether somebody else has changed sweep.json, which takes some milliseconds.
_CHANGING_S = 0.05

ARRAY, CLAIMS, LOCAL = "array", "claims", "local"


@dataclass
class Submission:
    """One array of a sweep, or one batch of tickets of the local queue."""

    number: int
    cells: list[int]
    mode: str
    time: str
    slurm_job_id: str = ""
    #: the name of the cluster that has taken it; empty if it did not say
    cluster: str = ""
    #: cells that were cancelled after it was submitted, and by whom
    cancelled: dict[int, str] = field(default_factory=dict)
    is_refused: bool = False
    by: str = ""
    #: the process that submits it
    process: dict[str, Any] = field(default_factory=dict)
    #: the task of each cell in an array, where they are not counted from 0
    tasks: list[int] | None = None
    #: how many of its cells may run at once
    share: int = 0

    @property
    def is_unknown(self) -> bool:
        """Whether nobody has written down if Slurm has taken it."""
        return self.mode != LOCAL and not self.slurm_job_id and not self.is_refused

    def is_being_made(self) -> bool:
        """Whether its submitter may still be at it."""
        return handover.is_being_made(self.process, self.time)

    @functools.cached_property
    def positions(self) -> dict[int, int]:
        """Which of its tasks a cell is, in an array."""
        return dict(zip(self.cells, self.tasks or range(len(self.cells)), strict=True))

    def task(self, cell: int) -> str:
        """The Slurm job id of a cell, `<array>_<index>`; empty where tasks claim cells, or none is known."""
        return f"{self.slurm_job_id}_{self.positions[cell]}" if self.slurm_job_id and self.mode == ARRAY else ""


class SweepLog:
    """The log of one sweep's folder; a new object reads everything anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Log(folder / "log")

    def submitting(
        self,
        cells: Iterable[int],
        mode: str,
        code: dict[str, Any],
        share: int,
        tasks: Iterable[int] | None = None,
        seen: int | None = None,
    ) -> int:
        """Say that these cells, in ascending order, are about to be submitted; gives the submission's number.

        At most `share` of them run at once. `tasks` are their indices in the array, where they do not count from 0.
        `seen` is what `last` said before it was decided that nobody else will run them; None: nobody else can.
        Raises ConflictError where another process has submitted something since then.
        """
        mine = own_process()
        more = {"share": share} | ({} if tasks is None else {"tasks": list(tasks)})
        told = {"cells": to_ranges(cells), "mode": mode, "code": code, "process": mine, **more}
        while True:
            last = self.log.last()
            for theirs in self.log.entries() if seen is not None else ():
                body = theirs.body
                if theirs.number > (seen or 0) and body["kind"] == "submitting" and body["process"] != mine:
                    raise ConflictError(f"Sweep {self.folder.name}", "this submission", f"that of {body['by']}")
            if self.log.cas({"kind": "submitting", "time": now(), "by": who(), **told}, after=last):
                return last + 1

    def last(self) -> int:
        """The number of the newest entry, for `submitting`."""
        return self.log.last()

    def submitted(self, number: int, slurm_job_id: str) -> None:
        """Slurm has taken a submission."""
        self._add("submitted", submission=number, slurm_job_id=slurm_job_id, cluster=cluster_name())

    def refused(self, number: int, reason: str) -> None:
        """Slurm has not taken a submission; none of its cells will begin because of it."""
        self._add("refused", submission=number, reason=reason)

    def cancelled(self, cells: Iterable[int]) -> None:
        """These cells will not begin, whatever was submitted so far."""
        self._add("cancelled", cells=to_ranges(cells))

    def note_over(self) -> bool:
        """Write down that all has ended; False if somebody has since the last submission."""
        while True:
            last = self.log.last()
            kinds = [entry.body["kind"] for entry in self.log.entries()]
            if next((kind for kind in reversed(kinds) if kind in ("over", "submitting")), "") == "over":
                return False
            if self.log.cas({"kind": "over", "time": now(), "by": who()}, after=last):
                return True

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Within, no other process changes sweep.json; whoever comes meanwhile waits, unless that process has died."""
        mine = own_process()
        while True:
            last = self.log.last()
            told = [one.body for one in self.log.entries() if one.body["kind"] in ("changing", "changed")]
            theirs = told[-1] if told and told[-1]["kind"] == "changing" else None
            if theirs and theirs["process"] != mine and handover.is_being_made(theirs["process"], theirs["time"]):
                time.sleep(_CHANGING_S)
            elif self.log.cas({"kind": "changing", "time": now(), "by": who(), "process": mine}, after=last):
                break
        try:
            yield
        finally:
            self._add("changed")

    def submissions(self) -> list[Submission]:
        """All submissions, oldest first."""
        found: dict[int, Submission] = {}
        for number, body in ((entry.number, entry.body) for entry in self.log.entries()):
            one = found.get(body.get("submission", 0))
            if body["kind"] == "submitting":
                found[number] = Submission(
                    number,
                    from_ranges(body["cells"]),
                    body["mode"],
                    body["time"],
                    by=body["by"],
                    process=body["process"],
                    tasks=body.get("tasks"),
                    share=body["share"],
                )
            elif body["kind"] == "submitted" and one:
                one.slurm_job_id, one.time = body["slurm_job_id"], body["time"]
                one.cluster = body.get("cluster", "")
            elif body["kind"] == "refused" and one:
                one.is_refused = True
            elif body["kind"] == "cancelled":
                gone = set(from_ranges(body["cells"]))
                for one in found.values():
                    one.cancelled |= dict.fromkeys(gone.intersection(one.cells), body["by"])
        return list(found.values())

    def has_child(self, child: str) -> None:
        """A run or sweep comes after this one or one of its cells."""
        if child not in self.children():
            self._add("child", child=child)

    def children(self) -> list[str]:
        """The runs and sweeps that come after this one or its cells."""
        return [entry.body["child"] for entry in self.log.entries() if entry.body["kind"] == "child"]

    def code(self) -> dict[str, Any] | None:
        """The code of the newest submission; None if there was none."""
        told = [entry.body["code"] for entry in self.log.entries() if entry.body["kind"] == "submitting"]
        return told[-1] if told else None

    def claims(self, number: int) -> dict[int, str]:
        """Which task has claimed which cell of a submission, by the cell's position in it."""
        return {entry.number - 1: entry.body["task"] for entry in self.claims_log(number).entries()}

    def claims_log(self, number: int) -> Log:
        """Where tasks claim the cells of a submission."""
        return Log(self.folder / "claims" / f"{number:04d}")

    def _add(self, kind: str, **body: Any) -> int:
        return self.log.append({"kind": kind, "time": now(), "by": who(), **body})


def newest(submissions: Iterable[Submission]) -> dict[int, Submission]:
    """The submission that each cell was last part of; cells that never were are left out."""
    return {cell: one for one in submissions if not one.is_refused for cell in one.cells}


def stories(cells: Iterable[int], log: SweepLog, queue: Queue | None = None) -> dict[int, Story]:
    """How cells stand that have no ledger of their own. Slurm is asked only if one of them may wait there.

    A story without entries says that nobody will run the cell.
    """
    latest = newest(log.submissions())
    found = {cell: _story(latest.get(cell), cell) for cell in cells}
    waiting = [cell for cell, story in found.items() if story.where == "slurm"]
    if not waiting:
        return found
    lives = Living((queue or QUEUE).answer(), log)
    for cell in waiting:
        if not lives.can_begin(latest[cell], cell):
            gone = f"Slurm job {latest[cell].slurm_job_id} has gone, and this cell had not begun"
            found[cell] = Story("cancelled", gone, where="slurm", slurm_job_id=found[cell].slurm_job_id)
    return found


def is_in_slurm(log: SweepLog, queue: Queue | None = None) -> bool:
    """Whether Slurm has tasks of a sweep some of whose cells were not cancelled."""
    mine = [one for one in log.submissions() if one.mode != LOCAL and not one.is_refused]
    mine = [one for one in mine if len(one.cancelled) < len(one.cells)]
    return bool(mine) and any(map(Living((queue or QUEUE).answer(), log).has, mine))


def _story(submission: Submission | None, cell: int) -> Story:
    if submission is None:
        return Story(cause="it was not submitted")
    if cell in submission.cancelled:
        return Story("cancelled", f"cancelled by {submission.cancelled[cell]} before it began")
    if submission.mode == LOCAL:
        return fold([Entry(0, {"kind": "submitted", "where": "local"})])
    # An entry that the cell's ledger would have, if it had one.
    body = {"kind": "submitted", "where": "slurm", "slurm_job_id": submission.task(cell), "time": submission.time}
    return fold([Entry(0, body)])


class _Known:
    """What the newest answer came to: hundreds of sweeps are looked at with one."""

    answer: Answer | None = None
    found: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())


def _there(answer: Answer) -> tuple[frozenset[str], frozenset[str]]:
    """The jobs that are not over, and the arrays that they belong to."""
    if _Known.answer is not answer:
        tasks = frozenset(name for name, job in answer.jobs.items() if not job.is_over)
        _Known.answer, _Known.found = answer, (tasks, frozenset(name.partition("_")[0] for name in tasks))
    return _Known.found


class Living:
    """What of a sweep's submissions Slurm still has, by one answer of squeue. Where that cannot know, it says yes."""

    def __init__(self, answer: Answer, log: SweepLog) -> None:
        self.answer = answer
        self.log = log
        self.tasks, self.arrays = _there(answer)
        self._claims: dict[int, dict[int, str]] = {}

    def has(self, submission: Submission) -> bool:
        """Whether any task of a submission is there."""
        return self._cannot_know(submission) or submission.slurm_job_id in self.arrays

    def running_at_most(self, submission: Submission) -> int:
        """How many cells of a submission may run at once now: no more than its share, nor than its tasks can run."""
        if self._cannot_know(submission):
            return submission.share
        mine = sum(name.startswith(f"{submission.slurm_job_id}_") for name in self.tasks)
        return min(submission.share, mine) if submission.mode == ARRAY else submission.share * (mine > 0)

    def can_begin(self, submission: Submission, cell: int) -> bool:
        """Whether a cell that has not begun still will."""
        if self._cannot_know(submission):
            return True
        if submission.mode == ARRAY:
            return submission.task(cell) in self.tasks
        if submission.number not in self._claims:
            self._claims[submission.number] = self.log.claims(submission.number)
        task = self._claims[submission.number].get(submission.positions[cell])
        return submission.slurm_job_id in self.arrays if task is None else task in self.tasks

    def _cannot_know(self, submission: Submission) -> bool:
        return not self.answer.is_after(parse_time_s(submission.time)) or is_elsewhere(submission.cluster)


def to_ranges(numbers: Iterable[int]) -> str:
    """`0-99,103` for ascending numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def from_ranges(text: str) -> list[int]:
    """The numbers of `0-99,103`."""
    return list(_numbers(text))


def _numbers(text: str) -> Iterator[int]:
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        yield from range(int(first), int(last or first) + 1)
