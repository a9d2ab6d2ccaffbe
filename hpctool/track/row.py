"""A row: what tables say of one run, read from few of its files; a damaged one is a row too, not an error."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from hpctool import files
from hpctool.config import flatten
from hpctool.errors import CorruptError, HpctoolError, NewerFormat
from hpctool.launch.result import RESULT_FORMAT, correct
from hpctool.launch.slurm.queue import Queue
from hpctool.log import decode_entry
from hpctool.rundir import OVER, RunDir, Story, fold
from hpctool.track.keys import changed_values, typed_values
from hpctool.track.metrics import from_json, read_before, read_last, to_json
from hpctool.track.underway import Memory, Underway

#: The word for a run whose run.json cannot be read; the other states are in hpctool.rundir.
BROKEN = "broken"


#: The columns of every row, beside its metrics and the keys of its configuration.
FIELDS = (
    "id",
    "name",
    "job",
    "state",
    "cause",
    "attempts",
    "step",
    "param_digest",
    "slurm_job_id",
    "data_commit",
    "created",
    "by",
    "sweep",
    "cell",
)


@dataclass
class Row:
    """One run, or a cell of a sweep that has not started (then `rundir` is None and the state is `queued`)."""

    id: str
    name: str = ""
    job: str = ""
    state: str = BROKEN
    cause: str = ""
    attempts: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    param_digest: str | None = None
    slurm_job_id: str = ""
    data_commit: str | None = None
    created: str = ""
    by: str = ""
    sweep: str | None = None
    cell: int | None = None
    #: what a sweep varied or somebody typed, with its values
    changed: dict[str, Any] = field(default_factory=dict)
    #: the choice of each config group: `model` → `cnn`
    choices: dict[str, str] = field(default_factory=dict)
    #: sentences about files of this run that could not be read
    problems: list[str] = field(default_factory=list)
    rundir: RunDir | None = None
    #: the run's own ledger says that it is over, not only Slurm
    is_final: bool = False
    plain: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration with dotted keys; read when it is first asked for, empty if it cannot be."""
        if self.plain is None:
            self.plain = {}
            with noting(self.problems):
                self.plain = read_config(self.rundir) if self.rundir else {}
        return self.plain

    def setting(self, key: str) -> Any:
        """The value of a key of the configuration, or the choice of a group; None where it has neither."""
        for known in (self.changed, self.choices):
            if key in known:
                return known[key]
        return self.config.get(key)

    def has_setting(self, key: str) -> bool:
        """Whether the configuration has such a key or group."""
        return key in self.changed or key in self.choices or key in self.config

    def settings(self) -> list[str]:
        """All keys and groups of the configuration."""
        return [*self.changed, *self.choices, *self.config]

    def value(self, key: str) -> Any:
        """What a column of that name shows: a field of the row, a metric, or a key of the configuration; else None."""
        if key in FIELDS:
            return getattr(self, key)
        return self.metrics[key] if key in self.metrics else self.setting(key)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        fields = {name: getattr(self, name) for name in FIELDS}
        metrics = {name: to_json(value) for name, value in self.metrics.items()}
        return {**fields, "metrics": metrics, "changed": self.changed, "problems": self.problems}


def read_row(rundir: RunDir) -> Row:
    """One run's row; what cannot be read is said in `problems`. Never raises for a damaged file."""
    return read_rows([rundir])[0]


def read_rows(rundirs: Sequence[RunDir], queue: Queue | None = None, underway: Underway | None = None) -> list[Row]:
    """The rows of many runs, with one question to Slurm for all of them.

    Of runs under way `underway` knows a part, and learns what it does not know.
    """
    drafts = [_Draft(rundir, underway) for rundir in rundirs]
    known = [draft for draft in drafts if draft.story is not None]
    stories = [draft.story for draft in known if draft.story is not None]
    with noting([]):  # said by the row already
        correct([draft.rundir for draft in known], stories, queue)
    for draft, story in zip(known, stories, strict=True):
        draft.finish(story)
    return [draft.row for draft in drafts]


class _Draft:
    """A row on its way: what the run's own files say, before Slurm is asked. `story` is None if run.json is broken."""

    def __init__(self, rundir: RunDir, underway: Underway | None) -> None:
        self.rundir = rundir
        self.row = Row(rundir.id, state="", rundir=rundir)
        #: None while nobody has looked
        self.result: dict[str, Any] | None = None
        self.story: Story | None = None
        self.memory = underway.recall(rundir) if underway else None
        if self.memory is not None:
            take_record(self.row, self.memory.record)
            self.row.plain = self.memory.config
            self.story = fold(self.memory.entries)
        else:
            self.memory = self._read(underway)
        self.row.is_final = self.story is not None and self.story.state in OVER
        if underway and self.memory and not self.row.is_final:
            underway.learn(rundir.id, self.memory)

    def _read(self, underway: Underway | None) -> Memory | None:
        """Read the run's files; what they say is worth remembering unless something is the matter with them."""
        row, record = self.row, dict[str, Any]()
        with noting(row.problems):
            record = self.rundir.record()
            take_record(row, record)
        if row.problems:
            row.state, row.cause = BROKEN, "run.json cannot be read"
            return None
        self.result = {}
        with noting(row.problems):
            self.result = _checked_result(self.rundir)
        self.story, mark = Story(state=BROKEN), None
        if underway and self.result.get("state") != "completed":
            with contextlib.suppress(OSError):  # nothing has happened yet
                # Before the entries are listed: what comes in between makes it a mark of the past.
                mark = self.rundir.ledger.mark()
        with noting(row.problems):
            self.story = _story(self.rundir, self.result)
        if mark is None or row.problems or self.story.state in OVER:
            return None
        return Memory(record, row.config, mark, self.story.entries)

    def finish(self, story: Story) -> None:
        """Fill the row in."""
        row = self.row
        row.state, row.cause, row.attempts, row.step = story.state, story.cause, story.attempt, story.step
        row.slurm_job_id = story.slurm_job_id
        with noting(row.problems):
            if self.result is None:
                self.result = _checked_result(self.rundir) if story.state in OVER else {}
            if self.result.get("state") == story.state and "metrics" in self.result:
                _take_result(row, self.result)
            else:
                _take_metrics(row, self.rundir, story, self.memory)
        if row.problems and self.memory:
            self.memory.before = None  # whoever reads it again says so again


def read_config(rundir: RunDir) -> dict[str, Any]:
    """A run's resolved configuration with dotted keys, quicker than `config.load`. Raises OSError, CorruptError.

    C's YAML reader: a table of a thousand runs with a column of the configuration is otherwise ten seconds.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        plain = yaml.load(files.read_small(rundir.config_yaml), loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise CorruptError(rundir.config_yaml, f"it is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(plain, dict):
        raise CorruptError(rundir.config_yaml, "it holds no keys")
    return flatten(plain)


# ---------------------------------------------------------------------------------------------- reading one run


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Turn what a damaged file raises or warns of into a sentence, and go on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield
        except (HpctoolError, OSError) as error:
            problems.append(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            # It can be read, but is not what was written.
            problems.append(f"A file does not hold what it should ({type(error).__name__}: {error}).")
    problems.extend(dict.fromkeys(str(one.message) for one in said))


def take_record(row: Row, record: dict[str, Any]) -> None:
    """Fill in what run.json, or a cell of sweep.json, says. Raises KeyError and the like on a damaged one."""
    row.name, row.job, row.created, row.by = (str(record[key]) for key in ("name", "job", "created", "by"))
    row.sweep = record.get("sweep")
    row.cell = None if record.get("cell") is None else int(record["cell"])
    row.changed = changed_values(record, typed_values(record.get("overrides") or []))
    row.choices = {name: str(choice) for name, choice in (record.get("choices") or {}).items()}
    row.data_commit = _dataset(record.get("inputs") or [])


def _checked_result(rundir: RunDir) -> dict[str, Any]:
    result = rundir.result() or {}
    if result.get("format", RESULT_FORMAT) > RESULT_FORMAT:
        raise NewerFormat(rundir.result_json, "result", result["format"], RESULT_FORMAT)
    return result


def _story(rundir: RunDir, result: dict[str, Any]) -> Story:
    """What the ledger says. One that completed in its first attempt is known from two entries of it."""
    ledger = rundir.ledger
    if result.get("state") == "completed" and result.get("attempts") == 1:
        newest = ledger.newest()
        if newest and newest.body["kind"] == "ended" and newest.body["state"] == "completed":
            first = decode_entry(ledger.path(1), files.read_small(ledger.path(1)))
            return Story("completed", "", 1, newest.body["step"], first.get("slurm_job_id", ""))
    return rundir.story()


def _take_result(row: Row, result: dict[str, Any]) -> None:
    row.step = int(result.get("step", row.step))
    row.metrics = {name: from_json(value) for name, value in (result.get("metrics") or {}).items()}
    row.param_digest = result.get("param_digest")
    row.data_commit = result.get("data_commit") or row.data_commit


def _take_metrics(row: Row, rundir: RunDir, story: Story, memory: Memory | None) -> None:
    before = memory.before_attempt(story.attempt) if memory else None
    if memory and before is None and (before := read_before(rundir, story)) is not None:
        memory.before = story.attempt, before
    # The files of a whole ledger's attempts are known by name; a damaged one may lack an attempt.
    last = read_last(rundir, story, is_whole=not row.problems, before=before)
    row.metrics = {name: value for name, (_, value) in sorted(last.items())}
    if story.state in ("running", "stopping"):
        row.step = max([row.step, *(step for step, _ in last.values())])


def _dataset(inputs: list[dict[str, Any]]) -> str | None:
    return next((one["id"] for one in inputs if one["kind"] == "dataset"), None)
