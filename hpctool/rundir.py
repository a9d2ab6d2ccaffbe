"""RunDir: the one owner of every path that a run writes, and of the run's story.

runs/<name>-<8 hex>/
  run.json          who this run is: identity, job, inputs, choices, who asked (written once)
  config.yaml       the resolved config          overrides.txt    what was typed
  code.patch        environment.txt              submit.sh        how it was started
  ledger/           what happened: attempts begun, checkpoints committed, attempts ended (a log)
  metrics/<attempt>.jsonl    tensorboard/        logs/<attempt>/<rank>.{log,stacks,beat}    errors/<attempt>/<rank>.json
  checkpoints/step-00001200.a2/                  artifacts/       pictures and tables of the job
  result.json       how it ended
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import InputError, NewerFormat, OperationError, UnknownName, listing
from hpctool.log import Entry, Log

RUN_FORMAT = 1
INDEX_FORMAT = 1
SHORT = 8  # hex digits of an identity that a folder's name shows

#: The words for a run's state, the same in every table, file and message.
STATES = ("queued", "running", "stopping", "requeued", "completed", "failed", "cancelled")
#: in which somebody is at a run, or will be
UNDERWAY = STATES[:4]
#: after which a run is not run again unless somebody submits it again
OVER = STATES[4:]


def now() -> str:
    """The time as everything on disk says it: UTC, ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def who() -> str:
    """`user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@dataclass
class Story:
    """What a run's ledger says, folded: the newest attempt, the state and its cause."""

    state: str = "queued"
    cause: str = ""
    attempt: int = 0
    step: int = 0
    slurm_job_id: str = ""
    where: str = ""
    entries: list[Entry] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The number of the newest entry, 0 for none."""
        return self.entries[-1].number if self.entries else 0

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """The committed checkpoints, oldest first: step, attempt, path, digest.

        None by an attempt that was fenced, and none from which the run has gone back to an earlier step.
        """
        newest, found = 0, []
        for body in (e.body for e in self.entries):
            if body["kind"] == "begun":
                newest = max(newest, body["attempt"])
            elif body["kind"] == "checkpoint" and body["attempt"] >= newest:
                found.append(body)
            elif body["kind"] == "rollback" and body["attempt"] >= newest:
                found = [one for one in found if one["step"] <= body["to_step"]]
        return found

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The bodies of one kind of entry, oldest first."""
        return [e.body for e in self.entries if e.body["kind"] == kind]


def fold(entries: list[Entry]) -> Story:
    """The story that ledger entries tell. Facts of an attempt that is no longer the newest do not change it."""
    story = Story(entries=entries)
    for entry in entries:
        body = entry.body
        kind, attempt = body["kind"], body.get("attempt", story.attempt)
        if kind == "submitted":
            job = body.get("slurm_job_id", "")
            # A job may begin, and end, before the one who submitted it has written down its number.
            if not (story.attempt and is_of_job(story.slurm_job_id, job, body.get("array", ""))):
                story.state, story.cause = "queued", ""
            story.where = body["where"]
            story.slurm_job_id = job or story.slurm_job_id
        elif kind == "begun":
            story.state, story.cause, story.attempt = "running", "", attempt
            story.where = body.get("where", story.where)
            story.slurm_job_id = body.get("slurm_job_id", story.slurm_job_id)
        elif kind == "refused" and story.state in UNDERWAY:
            story.state, story.cause = "failed", f"not submitted: {body['reason']}"
        elif kind == "checkpoint" and attempt >= story.attempt:
            story.step = max(story.step, body["step"])
        elif kind == "rollback" and attempt >= story.attempt:
            story.step = min(story.step, body["to_step"])
        elif kind == "cancel" and story.state not in ("completed", "cancelled"):
            story.state = "stopping" if story.state in ("running", "stopping") else "cancelled"
            story.cause = f"cancelled by {body['by']}"
        elif kind == "ended" and attempt == story.attempt:
            cancelled = story.state == "stopping" and body["state"] != "completed"
            story.state = "cancelled" if cancelled else body["state"]
            story.cause = story.cause if cancelled else body.get("cause", "")
            story.step = max(story.step, body.get("step", 0))
    return story


def newest_attempt(entries: list[Entry]) -> int:
    """The newest attempt that has begun, as any entry tells it: its own `begun` may be damaged. 0 for none."""
    # A start check may speak of an attempt before it begins.
    return max((e.body.get("attempt", 0) for e in entries if e.body["kind"] != "unfit"), default=0)


def _may_have_been_over(entries: list[Entry]) -> bool:
    """Whether the run's newest attempt, or what waited for one, has come to an end, though it be submitted again."""
    begun = max((index for index, entry in enumerate(entries) if entry.body["kind"] == "begun"), default=0)
    since = [entry.body for entry in entries[begun:]]
    return any(body["kind"] in ("cancel", "refused") or body.get("state") in OVER for body in since)


def is_of_job(job: str, submitted: str, array: str) -> bool:
    """Whether a job that has begun is the one that was submitted, or a task of that array."""
    return bool(job) and (job == submitted or (bool(array) and job.startswith(f"{array}_")))


class RunDir:
    """One run's folder. `attempt` is 0 for a reader and the attempt's number for the ranks that write."""

    def __init__(self, path: Path, attempt: int = 0) -> None:
        self.path = path
        self.attempt = attempt

    # -- who it is

    @property
    def id(self) -> str:
        """`<name>-<8 hex>`, the folder's name."""
        return self.path.name

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def config_yaml(self) -> Path:
        return self.path / "config.yaml"

    @property
    def overrides_txt(self) -> Path:
        return self.path / "overrides.txt"

    @property
    def code_patch(self) -> Path:
        return self.path / "code.patch"

    @property
    def environment_txt(self) -> Path:
        return self.path / "environment.txt"

    @property
    def submit_script(self) -> Path:
        return self.path / "submit.sh"

    @property
    def result_json(self) -> Path:
        return self.path / "result.json"

    def record(self) -> dict[str, Any]:
        """run.json: identity (64 hex), job, name, inputs, choices. Raises UnknownName, NewerFormat, CorruptError."""
        try:
            record: dict[str, Any] = files.read_json(self.run_json)
        except FileNotFoundError as error:
            raise UnknownName("run", self.id, list_run_ids(self.path.parent)) from error
        if record.get("format", 0) > RUN_FORMAT:
            raise NewerFormat(self.run_json, "run", record["format"], RUN_FORMAT)
        return record

    def result(self) -> dict[str, Any] | None:
        """result.json, or None while there is none."""
        try:
            result: dict[str, Any] = files.read_json(self.result_json)
        except FileNotFoundError:
            return None
        return result

    # -- what happened

    @property
    def ledger(self) -> Log:
        """The run's log of facts; a new object reads everything anew."""
        return Log(self.path / "ledger")

    def story(self) -> Story:
        """The folded ledger. An entry that cannot be read is warned of and skipped."""
        return fold(self.ledger.entries())

    def code(self) -> dict[str, Any]:
        """The code that the next attempt runs: of the newest submission, which may have come after an edit."""
        changed = self.story().of_kind("code")
        found: dict[str, Any] = changed[-1]["code"] if changed else self.record()["code"]
        return found

    def inputs(self) -> list[dict[str, Any]]:
        """What it is made from: kind, name, id of each. A run that came after another knows some since it began."""
        found: list[dict[str, Any]] = list(self.record().get("inputs") or [])
        if self.record().get("after"):
            later = [one for body in self.story().of_kind("resolved")[-1:] for one in body["inputs"]]
            known = {(one["kind"], one["id"]) for one in found}
            found += [one for one in later if (one["kind"], one["id"]) not in known]
        return found

    def reopen(self) -> None:
        """Take back what the index of runs remembers of this one, if there is an index: somebody starts it again.

        Called after the ledger says so: whoever has read the run as it was remembers it before this, or not at all.
        """
        if not forget(self.path.parent, [self.id]):
            warnings.warn(
                f"{index_folder(self.path.parent)} cannot be written, so lists may show run {self.id} as it was. "
                "Move that folder away, it is made anew; `hpctool runs list --scan` looks at the runs themselves.",
                stacklevel=2,
            )

    def begin(self, facts: Mapping[str, Any], check: Callable[[list[Entry]], None] = lambda entries: None) -> int:
        """Begin the next attempt and give its number. From now on no older attempt can commit.

        `check` sees what the ledger says at that moment; what it raises ends this, and nothing has begun.
        """
        while True:
            ledger = self.ledger
            # Taken before the entries are read: whatever comes later makes `cas` fail.
            last = ledger.last()
            entries = ledger.entries()
            check(entries)
            # Each entry that cannot be read may have begun one. No number is ever given twice; some may be left out.
            number = 1 + newest_attempt(entries) + len(ledger.broken)
            was_over = _may_have_been_over(entries)
            if was_over:
                # Once before, for whoever is killed before the second; what that forgets is only read again.
                forget(self.path.parent, [self.id])
            if ledger.cas({"kind": "begun", "attempt": number, "time": now(), **facts}, after=last):
                if was_over:
                    self.reopen()
                files.remove_temporaries(self.path / "artifacts")
                return number

    # -- what an attempt writes

    def metrics(self, attempt: int | None = None) -> Path:
        return self.path / "metrics" / f"{self._number(attempt)}.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def log(self, rank: int, attempt: int | None = None) -> Path:
        return self.path / "logs" / str(self._number(attempt)) / f"{rank}.log"

    def stacks(self, rank: int, attempt: int | None = None) -> Path:
        """Which process a rank is, and the stacks it was asked for."""
        return self.path / "logs" / str(self._number(attempt)) / f"{rank}.stacks"

    def beat(self, rank: int, attempt: int | None = None) -> Path:
        """How far a rank is, written by its watchdog."""
        return self.path / "logs" / str(self._number(attempt)) / f"{rank}.beat"

    def error(self, rank: int, attempt: int | None = None) -> Path:
        return self.path / "errors" / str(self._number(attempt)) / f"{rank}.json"

    def rendezvous(self, attempt: int | None = None) -> Path:
        return self.path / "logs" / str(self._number(attempt)) / "rendezvous.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int, attempt: int | None = None) -> Path:
        """Where attempt `attempt` puts its checkpoint of `step`; no folder is ever written twice."""
        return self.checkpoints / f"step-{step:08d}.a{self._number(attempt)}"

    def artifact(self, name: str) -> Path:
        """A picture or table that the job makes; the folder is there."""
        folder = self.path / "artifacts"
        folder.mkdir(exist_ok=True)
        return folder / name

    def _number(self, attempt: int | None) -> int:
        number = self.attempt if attempt is None else attempt
        assert number > 0, "a reader of a run asked for a path of 'this' attempt"
        return number


def create_run(runs: Path, record: dict[str, Any], texts: dict[str, str]) -> RunDir:
    """Make a run's folder whole: `record` as run.json last, so that a folder without it is a leftover.

    `record` needs identity, job and name; format, id, created and by are added. `texts` are further files by name.
    A folder that is there with the same identity is returned as it is. Raises OSError, InputError where another
    identity begins with the same hex digits.
    """
    run = RunDir(runs / f"{record['name']}-{record['identity'][:SHORT]}")
    if not run.run_json.exists():
        # 0700: a run's checkpoints are resumed from, so nobody else may write here.
        run.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in texts.items():
            files.write_atomic(run.path / name, text)
        full = {"format": RUN_FORMAT, "id": run.id, "created": now(), "by": who(), **record}
        # Of two that ask for the same run at once, one has made it.
        files.create(run.run_json, (json.dumps(full, indent=1, allow_nan=False) + "\n").encode())
    theirs = run.record()["identity"]
    if theirs != record["identity"]:
        raise InputError(
            f"Run {run.id} exists with another identity ({theirs[:16]}…), which begins alike. "
            "Give this run another name=…"
        )
    return run


def index_folder(runs: Path) -> Path:
    """Where the index of the runs in a folder lies: a log, see track/index.py."""
    return runs / ".index"


def forget(runs: Path, ids: list[str]) -> bool:
    """Take runs out of the index, if there is one; False where it cannot be written. Readers compare, and mend it."""
    folder = index_folder(runs)
    if ids and folder.is_dir():
        # A cache must not keep anybody from working.
        try:
            Log(folder).append({"kind": "opened", "format": INDEX_FORMAT, "ids": ids})
        except OSError:
            return False
    return True


def list_run_ids(runs: Path) -> list[str]:
    """The ids of all runs in a folder, in order of name; empty where there is none."""
    return _ids_beginning_with("", runs)


def find_run(runs: Path, name: str) -> RunDir:
    """The run whose id is `name` or begins with it. Raises UnknownName, InputError where it is ambiguous."""
    found = _ids_beginning_with(name, runs) if name else []
    if name in found or len(found) == 1:
        return RunDir(runs / (name if name in found else found[0]))
    if found:
        raise InputError(f"'{name}' is the beginning of {len(found)} runs: {listing(found)}. Type more of it.")
    raise UnknownName("run", name, list_run_ids(runs), f"They lie in {runs}.")


def _ids_beginning_with(start: str, runs: Path) -> list[str]:
    try:
        names = [n for n in os.listdir(runs) if n.startswith(start) and not n.startswith(".") and n != "sweeps"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Not Path.exists, which raises for the private folder of somebody else.
    return sorted(name for name in names if os.path.exists(runs / name / "run.json"))


def check_private(path: Path) -> None:
    """Refuse to resume from a folder that others could have written. Raises OperationError, OSError."""
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
        raise OperationError(
            f"Refused to resume from {path}: it belongs to uid {status.st_uid} with mode {status.st_mode & 0o777:o}, "
            "so others may have written it. To trust it, make it your own: chown it to yourself, and chmod go-w."
        )
