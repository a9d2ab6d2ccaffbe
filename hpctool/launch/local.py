"""The queue of `cluster=local`: what submitters call. A process in the background (background.py) works it off.

<runs>/.local/<uid>@<host>/    for this user only, since whoever could write here could run programs as them
  queue.json              format and a random id, written once
  inbox/                  a log of facts: enqueued (one entry carries all tickets of a submission) and cancel
  environ/                the environment of each submission, removed when all of it has ended
  state.json              the supervisor's notes: which tickets have ended, what runs. It may be lost: the inbox and
                          the runs' own ledgers tell the rest
  supervisor.log

A ticket stands for a run until the run's ledger says that it is over (completed, failed, cancelled). Enqueuing a run
that has failed or was cancelled says `submitted` in its ledger, so that it runs once more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import CorruptError, NewerFormat, OperationError, listing
from hpctool.launch.endings import record_cancel
from hpctool.launch.private import private_folder
from hpctool.launch.ranks import MARK, TASK
from hpctool.launch.result import process_start
from hpctool.log import Entry, Log
from hpctool.rundir import RunDir, Story, now, who

QUEUE_FORMAT = 1
_LOG_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Ticket:
    """One run that is to be run here: a run that is there, or a cell of a sweep (`run` too, if its id is known)."""

    run: str | None
    sweep: str | None
    cell: int | None
    num_ranks: int
    #: the time limit of an attempt; None for none
    time_s: float | None
    #: how long before the time limit the ranks are told (SIGUSR2)
    signal_delay_s: float
    #: how long after SIGTERM they are killed
    kill_wait_s: float
    #: how many runs of the same submission may run at once
    max_parallel: int
    #: how many failures in a row without progress are tried again
    max_failures: int

    @property
    def name(self) -> str:
        """The run's id, or `<sweep>/<cell>` where that is not known yet."""
        return self.run or f"{self.sweep}/{self.cell}"

    def of_cell(self, run: str, sweep: str, cell: int) -> Ticket:
        """The same for another cell."""
        return replace(self, run=run, sweep=sweep, cell=cell)

    def answers_to(self, name: str) -> bool:
        """Whether `name` means this ticket: its run, its sweep, or `<sweep>/<cell>`."""
        return name in (self.run, self.sweep, f"{self.sweep}/{self.cell}")


@dataclass(frozen=True)
class Submission:
    """What one call of `enqueue` brought; `number` is that of its inbox entry."""

    number: int
    tickets: list[Ticket]
    command: list[str]
    environ: str


class Queue:
    """The files of a user's queue for one runs folder on one host."""

    def __init__(self, runs: Path, host: str = "") -> None:
        self.runs = runs.resolve()
        self.host = host or socket.gethostname()
        self.folder = self.runs / ".local" / f"{os.getuid()}@{self.host}"
        self.inbox = Log(self.folder / "inbox")
        self.log = self.folder / "supervisor.log"
        self.state_json = self.folder / "state.json"

    def make(self) -> None:
        """Make the folder, if it is not there. Raises OSError."""
        if not self.folder.exists():
            self.runs.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.folder.parent.mkdir()
                # Where several users share a runs folder, each must be able to have a queue.
                self.folder.parent.chmod(stat.S_IMODE(self.runs.stat().st_mode))
            self.folder.mkdir(mode=0o700, exist_ok=True)
        self.environ("").mkdir(mode=0o700, exist_ok=True)
        if not (self.folder / "queue.json").exists():
            body = {"format": QUEUE_FORMAT, "id": uuid.uuid4().hex}
            files.create(self.folder / "queue.json", files.canonical_json(body))

    def mark(self) -> str:
        """What tells this queue from every other, also from an earlier one in the same place; empty if it is gone."""
        try:
            body = files.read_json(self.folder / "queue.json")
        except FileNotFoundError:
            return ""
        if body["format"] > QUEUE_FORMAT:
            raise NewerFormat(self.folder / "queue.json", "local queue", body["format"], QUEUE_FORMAT)
        return hashlib.sha256(f"{body['id']} {self.folder}".encode()).hexdigest()[:32]

    def environ(self, name: str) -> Path:
        """Where the environment of a submission lies."""
        return self.folder / "environ" / name

    def state(self) -> dict[str, Any]:
        """The supervisor's notes. `floor`: entries up to this number have ended altogether; `ended`: entry → tickets;
        `opened`: entry → ticket → run id of a cell; `running`: what runs, `pid_start` being that of rank 0.
        """
        try:
            state: dict[str, Any] = files.read_json(self.state_json)
        except (FileNotFoundError, CorruptError):
            return {"format": QUEUE_FORMAT, "supervisor": None, "floor": 0, "ended": {}, "opened": {}, "running": []}
        return state

    def rows(self) -> list[dict[str, Any]]:
        """What is queued or running, in the order in which it was enqueued."""
        state = self.state()
        running = {(r["entry"], r["ticket"]): r for r in state["running"] if self._lives(r)}
        rows = []
        for submission in submissions(self.inbox.entries(after=state["floor"])):
            ended = set(state["ended"].get(str(submission.number), []))
            opened = state["opened"].get(str(submission.number), {})
            for index, ticket in enumerate(submission.tickets):
                if index not in ended:
                    run = opened.get(str(index), ticket.run)
                    rows.append(_row(self.host, ticket, run, running.get((submission.number, index))))
        return rows

    def _lives(self, running: dict[str, Any]) -> bool:
        return self.host != socket.gethostname() or process_start(running["pids"][0]) == running["pid_start"]

    def lock(self) -> int | None:
        """A file handle that holds the right to be this queue's supervisor, or None if somebody has it."""
        handle = os.open(private_folder() / f"{self.mark()}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle


def enqueue(runs: Path, tickets: list[Ticket], *, command: Sequence[str] = TASK) -> None:
    """Queue one submission and return; it is run with the environment that this process has now.

    `command` is the program of a rank, the run folder its last argument. Raises OSError, OperationError where the
    supervisor cannot be started; the tickets are queued then all the same.
    """
    if not tickets:
        return
    queue = Queue(runs)
    queue.make()
    for ticket in tickets:
        _submit_again(queue.runs, ticket)
    environ = f"{uuid.uuid4().hex}.json"
    # Tokens and keys stand in environments: nobody else may read them.
    files.write_durably(queue.environ(environ), files.canonical_json(dict(os.environ)), mode=0o600)
    shared, own = _packed([asdict(ticket) for ticket in tickets])
    body = {"kind": "enqueued", "format": QUEUE_FORMAT, "by": who(), "time": now(), "environ": environ}
    queue.inbox.append({**body, "command": list(command), "shared": shared, "tickets": own})
    ensure_running(runs)


def cancel(runs: Path, name: str) -> bool:
    """Cancel a run, a sweep or a `<sweep>/<cell>`, on whatever host it is queued; False if it is in no queue.

    What is queued is dropped; what runs gets SIGTERM, SIGKILL later, and is never requeued.
    """
    found = False
    for queue in _queues(runs):
        rows = [row for row in queue.rows() if name in (row["run"], row["sweep"], row["name"])]
        if not rows:
            continue
        found = True
        folders = [RunDir(queue.runs / row["run"]) for row in rows if row["run"]]
        told = [run.id for run in folders if run.run_json.exists() and record_cancel(run, who())]
        body = {"kind": "cancel", "format": QUEUE_FORMAT, "name": name, "by": who(), "time": now(), "told": told}
        queue.inbox.append(body)
        if queue.host == socket.gethostname():
            ensure_running(runs)
    return found


def status(runs: Path) -> list[dict[str, Any]]:
    """What this user has queued and running here and on other hosts; needs no supervisor.

    Keys: host, name, run (null for a cell without a folder whose id is not known), sweep, cell, num_ranks, state
    (queued, running or stopping), and for what runs `pids` in order of rank and `since`.
    """
    return [row for queue in _queues(runs) for row in queue.rows()]


def lost(runs: Path, told: Mapping[str, Story]) -> set[str]:
    """Which of these runs, by their stories, wait here and have no ticket, so that nobody will run them.

    Whoever submits says it in the ledger first, and may be killed, or find the disk full, before there is a ticket.
    """
    waiting = {i for i, story in told.items() if story.where == "local" and story.state in ("queued", "requeued")}
    waiting -= {row["run"] for row in status(runs)} if waiting else set()
    # Another user's may be in a queue of theirs; one of mine may have run and left it since its story was read.
    mine = [RunDir(runs / i) for i in waiting if (runs / i).is_dir() and (runs / i).stat().st_uid == os.getuid()]
    return {run.id for run in mine if run.story().last == told[run.id].last}


def wait(runs: Path, names: Iterable[str], timeout_s: float | None = None) -> list[str]:
    """Wait until runs, sweeps or cells have left the queue; returns those that had not at the timeout."""
    names = list(names)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = 0.05
    while True:
        there = {row[key] for row in status(runs) for key in ("run", "sweep", "name")}
        left = [name for name in names if name in there]
        if not left or (deadline is not None and time.monotonic() >= deadline):
            return left
        # Somebody may have killed the supervisor while we wait.
        ensure_running(runs)
        time.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.5)


def ensure_running(runs: Path) -> None:
    """Start this host's supervisor if there is something to do and none lives. Raises OperationError."""
    queue = Queue(runs)
    handle = queue.lock() if queue.mark() else None
    if handle is None:
        return
    try:
        if queue.rows():
            _start_supervisor(queue, handle)
    finally:
        os.close(handle)


def submissions(entries: Iterable[Entry]) -> Iterator[Submission]:
    """The submissions among inbox entries. Raises NewerFormat."""
    for number, body in ((e.number, e.body) for e in entries):
        if body["format"] > QUEUE_FORMAT:
            raise NewerFormat(f"inbox entry {number}", "local queue", body["format"], QUEUE_FORMAT)
        if body["kind"] == "enqueued":
            tickets = [Ticket(**{**body["shared"], **own}) for own in body["tickets"]]
            yield Submission(number, tickets, body["command"], body["environ"])


def _packed(tickets: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all tickets have in common, once, and what is each one's own: ten thousand cells stay one small entry."""
    first = tickets[0]
    shared = {key: value for key, value in first.items() if all(t[key] == value for t in tickets)}
    return shared, [{key: value for key, value in t.items() if key not in shared} for t in tickets]


def _submit_again(runs: Path, ticket: Ticket) -> None:
    rundir = RunDir(runs / (ticket.run or ""))
    if ticket.run and rundir.run_json.exists() and rundir.story().state in ("failed", "cancelled"):
        rundir.ledger.append({"kind": "submitted", "where": "local", "time": now()})
        rundir.reopen()


def _queues(runs: Path) -> list[Queue]:
    """This user's queues for a runs folder, on all hosts."""
    mine = f"{os.getuid()}@"
    return [Queue(runs, p.parent.name.removeprefix(mine)) for p in sorted(runs.glob(f".local/{mine}*/queue.json"))]


def _row(host: str, ticket: Ticket, run: str | None, running: dict[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "host": host,
        "name": run or ticket.name,
        "run": run,
        "sweep": ticket.sweep,
        "cell": ticket.cell,
    }
    row |= {"num_ranks": ticket.num_ranks, "state": "queued", "pids": [], "since": None}
    if running is not None:
        row |= {"state": "stopping" if running["stopping"] else "running"}
        row |= {"pids": running["pids"], "since": running["since"]}
    return row


def _start_supervisor(queue: Queue, lock: int) -> None:
    """Start the supervisor; it inherits the lock, so that there is never a moment in which nobody has it."""
    if queue.log.exists() and queue.log.stat().st_size > _LOG_MAX_BYTES:
        os.replace(queue.log, queue.log.with_name("supervisor.log.1"))
    with open(queue.log, "ab") as log:
        # It forks and this one ends at once, so that no child is left to whoever called.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "hpctool.launch.background", str(queue.runs), str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={key: value for key, value in os.environ.items() if key != MARK},
            start_new_session=True,
            pass_fds=[lock],
            check=False,
        )
    if done.returncode != 0:
        lines = queue.log.read_text(errors="replace").strip().splitlines()
        raise OperationError(
            f"The local queue's supervisor could not be started ({listing(lines[-1:])}); what is queued stays queued. "
            f"Its log: {queue.log}"
        )
