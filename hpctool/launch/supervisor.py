"""What the process behind `cluster=local` (background.py) does: starts what is queued, watches it, brings it back.

It may be killed at any moment. The next one kills what it left running, reads the inbox and the runs' ledgers again
and goes on; exact resume makes that safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import HpctoolError
from hpctool.launch import endings, ranks, starts
from hpctool.launch.endings import Verdict
from hpctool.launch.local import QUEUE_FORMAT, Queue, Submission, submissions
from hpctool.launch.ranks import Attempt, Limits, Outcome
from hpctool.launch.result import own_process, process_start
from hpctool.rundir import OVER, RunDir, Story, now

#: How long nothing is started after the machine had no room for one more process or file.
PAUSE_S = 10.0
#: How long the queue's folder must be away before it is believed to be gone: a network file system may deny it a while.
GONE_S = 2.0
#: what is the matter with this machine and not with one run
NO_ROOM = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, *files.FULL}
#: what reading raises where a run's files can be read but do not hold what hpctool writes
ODD = (ValueError, KeyError, TypeError, AttributeError, IndexError)


@dataclass
class Running:
    """One run that runs: which ticket of which submission it is, and its processes."""

    number: int
    index: int
    rundir: RunDir
    before: Story
    attempt: Attempt
    max_failures: int
    since: str
    cancelled_by: str = ""
    unwritten: bool = False

    def row(self) -> dict[str, Any]:
        """What state.json says of it."""
        place = {"entry": self.number, "ticket": self.index, "run": self.rundir.id, "since": self.since}
        pids = self.attempt.pids
        return {**place, "pids": pids, "pid_start": process_start(pids[0]), "stopping": bool(self.cancelled_by)}


class Supervisor:
    """Works one queue off. Whoever makes one holds the queue's lock."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.mark = queue.mark()
        state = queue.state()
        self.floor: int = state["floor"]
        self.ended: dict[int, set[int]] = {int(n): set(found) for n, found in state["ended"].items()}
        self.opened: dict[int, dict[int, str]] = {
            int(n): {int(i): run for i, run in found.items()} for n, found in state["opened"].items()
        }
        self.digested = self.floor
        self.open: dict[int, Submission] = {}
        self.waiting: dict[int, list[int]] = {}
        self.environs: dict[int, dict[str, str]] = {}
        self.running: list[Running] = []
        self.stop_asked = False
        self.shutting_down = False
        self._pause_until = 0.0
        self._there_s = time.monotonic()
        self._dirty = True

    def is_gone(self) -> bool:
        """Whether somebody has removed the queue's folder, or made another one in its place."""
        try:
            found = self.queue.mark()
        except (OSError, HpctoolError) as error:
            self._pause("the queue cannot be looked at", error)
            return False
        if found == self.mark:
            self._there_s = time.monotonic()
        elif not found:
            self._pause("the queue's folder is not there", FileNotFoundError(str(self.queue.folder)))
        return found != self.mark and (bool(found) or time.monotonic() > self._there_s + GONE_S)

    def tick(self) -> None:
        """Look at everything once; never waits."""
        if self.stop_asked and not self.shutting_down:
            self.shut_down()
        if time.monotonic() >= self._pause_until:
            try:
                self._digest()
            except HpctoolError as error:
                say(f"The queue cannot be read: {error}")
                self.shut_down()
            except OSError as error:
                self._pause("what was asked cannot be read or written down", error)
        for job in list(self.running):
            outcome = job.attempt.poll()
            if outcome is not None:
                self._settle(job, outcome)
        if not self.shutting_down:
            self._start_what_fits()
        if self._dirty:
            self.save()

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing that may be started waits."""
        return not self.running and (self.shutting_down or not self.open)

    def shut_down(self) -> None:
        """Stop what runs, so that it saves, and start nothing more; everything stays queued."""
        self.shutting_down = True
        for job in self.running:
            job.attempt.stop("shutdown")

    def kill(self) -> None:
        """Kill what runs: for an end that this program did not foresee."""
        for job in self.running:
            with contextlib.suppress(OSError):
                job.attempt.kill()

    def save(self, *, leaving: bool = False) -> None:
        """Write state.json. A full disk is said and lived with."""
        state = {
            "format": QUEUE_FORMAT,
            "supervisor": None if leaving else own_process(),
            "floor": self.floor,
            "ended": {str(n): sorted(found) for n, found in self.ended.items()},
            "opened": {str(n): {str(i): run for i, run in found.items()} for n, found in self.opened.items()},
            "running": [job.row() for job in self.running],
        }
        try:
            files.write_atomic(self.queue.state_json, files.canonical_json(state), mode=0o600)
            self._dirty = False
        except OSError as error:
            say(f"{self.queue.state_json} cannot be written: {error}")

    def _pause(self, what: str, error: Exception) -> None:
        if time.monotonic() >= self._pause_until:
            say(f"For the next {PAUSE_S:.0f} s, {what}: {error}")
        self._pause_until = time.monotonic() + PAUSE_S

    # -- what was asked

    def _digest(self) -> None:
        for entry in self.queue.inbox.entries(after=self.digested):
            for submission in submissions([entry]):
                self._take_in(submission)
            if entry.body["kind"] == "cancel":
                self._cancel(entry.body["name"], entry.body["by"], entry.body["told"])
            self.digested = entry.number
            self._dirty = True
        while self.floor < self.digested and self.floor + 1 not in self.open:
            self.floor += 1
            self.ended.pop(self.floor, None)
            self._dirty = True

    def _take_in(self, submission: Submission) -> None:
        number = submission.number
        known = {self.open[n].tickets[i].name for n, waiting in self.waiting.items() for i in waiting}
        self.open[number], self.waiting[number] = submission, []
        for index, ticket in enumerate(submission.tickets):
            if index in self.ended.get(number, ()):
                continue
            if ticket.name in known:
                say(f"{ticket.name}: it is queued already")
                self._end(number, index)
            else:
                self.waiting[number].append(index)
                known.add(ticket.name)
        self._forget_if_over(number)

    def _cancel(self, name: str, by: str, told: list[str]) -> None:
        for number, submission in list(self.open.items()):
            for index in list(self.waiting[number]):
                run = self.opened.get(number, {}).get(index, submission.tickets[index].run)
                if name == run or submission.tickets[index].answers_to(name):
                    say(f"{run or name}: cancelled by {by} before it ran")
                    self.waiting[number].remove(index)
                    self._end(number, index)
                    self._cancel_waiting(run, by, told)
        for job in self.running:
            if name == job.rundir.id or self.open[job.number].tickets[job.index].answers_to(name):
                say(f"{job.rundir.id}: cancelled by {by}")
                if job.rundir.id not in told:
                    endings.record_cancel(job.rundir, by)
                job.cancelled_by = by
                job.attempt.stop("cancelled")

    def _cancel_waiting(self, run: str | None, by: str, told: list[str]) -> None:
        if run is not None and (rundir := RunDir(self.queue.runs / run)).run_json.exists():
            endings.record_lost(rundir)
            # Whoever cancelled has told the ledger; said once more, it would hit a run that was submitted again since.
            if run not in told:
                endings.record_cancel(rundir, by)

    # -- what is to be started

    def _start_what_fits(self) -> None:
        for number, submission in list(self.open.items()):
            for index in list(self.waiting[number]):
                busy = sum(job.number == number for job in self.running)
                if busy >= submission.tickets[index].max_parallel or time.monotonic() < self._pause_until:
                    break
                self._start(submission, index)

    def _start(self, submission: Submission, index: int) -> None:
        name = submission.tickets[index].name
        try:
            rundir = self._open(submission, index)
            if any(job.rundir.id == rundir.id for job in self.running):
                return  # asked for twice: wait for the end of the first, whose ledger then tells what is left to do
            endings.record_lost(rundir)
            story = rundir.story()
            if story.state in (*OVER, "stopping"):
                say(f"{rundir.id}: nothing to do, it is {story.state}")
                self._leave(submission.number, index)
                return
            self._start_attempt(submission, index, rundir, story)
        except (HpctoolError, OSError, *ODD) as error:
            if no_room := error if _is_no_room(error) else self._give_up(submission, index, error):
                self._pause(f"{name} cannot be started", no_room)

    def _give_up(self, submission: Submission, index: int, error: Exception) -> Exception | None:
        """Take the next one: what is wrong with this one stays wrong. Gives why that cannot be written down now."""
        ticket = submission.tickets[index]
        cause = f"it cannot be started: {repr(error) if isinstance(error, ODD) else error}"
        run = self.opened.get(submission.number, {}).get(index, ticket.run)
        say(f"{ticket.name}: {cause}")
        try:
            if run is not None and (rundir := RunDir(self.queue.runs / run)).run_json.exists():
                endings.record_unstartable(rundir, cause)
        except (HpctoolError, OSError, *ODD) as worse:
            if _is_no_room(worse):
                return worse
            say(f"{ticket.name}: nor can that be written down: {worse}")
        self._leave(submission.number, index)
        return None

    def _open(self, submission: Submission, index: int) -> RunDir:
        """The run folder of a ticket; a cell's is made where it is not there yet."""
        ticket, opened = submission.tickets[index], self.opened.setdefault(submission.number, {})
        run = opened.get(index, ticket.run)
        if run is not None and (ticket.sweep is None or (self.queue.runs / run / "run.json").exists()):
            return RunDir(self.queue.runs / run)
        from hpctool.launch.cells import open_cell

        rundir = open_cell(self.queue.runs, str(ticket.sweep), int(ticket.cell or 0))
        opened[index] = rundir.id
        self._dirty = True
        return rundir

    def _start_attempt(self, submission: Submission, index: int, rundir: RunDir, story: Story) -> None:
        ticket, number = submission.tickets[index], submission.number
        limits = Limits(ticket.time_s, ticket.signal_delay_s, ticket.kill_wait_s)
        cwd = Path(rundir.record()["cwd"])
        environ = {**self._environ(submission, rundir), **starts.said(rundir.id, story.last)}
        where = cwd if cwd.is_dir() else rundir.path
        attempt = Attempt(rundir, ticket.num_ranks, limits, environ, submission.command, where)
        self.waiting[number].remove(index)
        self.running.append(Running(number, index, rundir, story, attempt, ticket.max_failures, now()))
        self._dirty = True
        say(f"{rundir.id}: started, {ticket.num_ranks} rank(s), pids {attempt.pids}")

    def _environ(self, submission: Submission, rundir: RunDir) -> dict[str, str]:
        from hpctool.launch.snapshot import environment

        if submission.number not in self.environs:
            path = self.queue.environ(submission.environ)
            self.environs[submission.number] = files.read_json(path) if path.exists() else dict(os.environ)
        theirs = self.environs[submission.number]
        # `environment` keeps what this process has in PYTHONPATH; that shall be the submitter's.
        os.environ["PYTHONPATH"] = theirs.get("PYTHONPATH", "")
        return {**theirs, **environment(rundir), "HPCTOOL_WHERE": "local", ranks.MARK: self.mark}

    # -- what has ended

    def _settle(self, job: Running, outcome: Outcome) -> None:
        try:
            verdict = self._judge(job, outcome)
        except OSError as error:  # a full disk: look again until it can be written
            if not job.unwritten:
                say(f"{job.rundir.id}: its end cannot be written down yet: {error}")
            job.unwritten = True
            return
        say(f"{job.rundir.id}: {verdict.state}{': ' if verdict.cause else ''}{verdict.cause}")
        self.running.remove(job)
        self._dirty = True
        if verdict.state == "requeued":
            self.waiting[job.number] = sorted([*self.waiting[job.number], job.index])
        else:
            self._end(job.number, job.index)

    def _judge(self, job: Running, outcome: Outcome) -> Verdict:
        if not job.rundir.run_json.exists():
            return Verdict("failed", "its folder is gone")
        try:
            if other := starts.began_instead(job.rundir, job.before, job.attempt.pid):
                return Verdict("failed", f"this start came too late: attempt {other} is another's")
            verdict = endings.judge(job.rundir, job.before, outcome, job.max_failures, job.cancelled_by)
            endings.record(job.rundir, job.before, outcome, verdict)
        except (HpctoolError, *ODD) as error:
            return Verdict("failed", f"what it left cannot be read: {error!r}")
        return verdict

    def _leave(self, number: int, index: int) -> None:
        self.waiting[number].remove(index)
        self._end(number, index)

    def _end(self, number: int, index: int) -> None:
        self.ended.setdefault(number, set()).add(index)
        self._dirty = True
        self._forget_if_over(number)

    def _forget_if_over(self, number: int) -> None:
        submission = self.open.get(number)
        if submission is not None and len(self.ended.get(number, ())) == len(submission.tickets):
            del self.open[number], self.waiting[number]
            self.opened.pop(number, None)
            self.environs.pop(number, None)
            with contextlib.suppress(OSError):
                self.queue.environ(submission.environ).unlink(missing_ok=True)


def _is_no_room(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in NO_ROOM


def say(text: str) -> None:
    """One line for supervisor.log. A full disk must not end anybody's run."""
    with contextlib.suppress(OSError):
        print(f"{now()} {text}", flush=True)
