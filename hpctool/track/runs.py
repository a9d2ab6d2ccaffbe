"""Rows: what a table says of each run, read from few files per run; a damaged one is a row too, not an error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpctool.config import flatten
from hpctool.errors import HpctoolError, NewerFormat, UnknownName
from hpctool.launch import cells
from hpctool.launch.overview import unbegun
from hpctool.launch.result import RESULT_FORMAT, correct
from hpctool.launch.slurm.queue import Queue
from hpctool.log import decode_entry
from hpctool.rundir import RunDir, Story, list_run_ids
from hpctool.track.keys import changed_values, typed_values
from hpctool.track.metrics import from_json, read_last, to_json

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
    #: sentences about files of this run that could not be read
    problems: list[str] = field(default_factory=list)
    rundir: RunDir | None = None
    plain: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration with dotted keys; read when it is first asked for, empty if it cannot be."""
        if self.plain is None:
            self.plain = {}
            with noting(self.problems):
                self.plain = read_config(self.rundir) if self.rundir else {}
        return self.plain

    def value(self, key: str) -> Any:
        """What a column of that name shows: a field of the row, a metric, or a key of the configuration; else None."""
        if key in FIELDS:
            return getattr(self, key)
        for known in (self.metrics, self.changed):
            if key in known:
                return known[key]
        return self.config.get(key)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        fields = {name: getattr(self, name) for name in FIELDS}
        metrics = {name: to_json(value) for name, value in self.metrics.items()}
        return {**fields, "metrics": metrics, "changed": self.changed, "problems": self.problems}


def list_rows(runs: Path, queue: Queue | None = None) -> list[Row]:
    """All runs below a folder, and the cells of its sweeps that have not started; newest first.

    Slurm is asked once at most, and only if some run or cell is under way there.
    """
    rows = {row.id: row for row in read_rows([RunDir(runs / name) for name in list_run_ids(runs)], queue)}
    for sweep_id in cells.list_sweep_ids(runs):
        problems: list[str] = []
        with noting(problems):
            for row in _cell_rows(runs, sweep_id, rows, queue):
                row.sweep = row.sweep or sweep_id
        if problems:
            rows[sweep_id] = Row(sweep_id, cause="sweep.json cannot be read", problems=problems, sweep=sweep_id)
    # Cells of one sweep have one time; they stand in the order of their index.
    ordered = sorted(rows.values(), key=lambda row: row.cell or 0)
    return sorted(ordered, key=lambda row: row.created, reverse=True)


def read_row(rundir: RunDir) -> Row:
    """One run's row; what cannot be read is said in `problems`. Never raises for a damaged file."""
    return read_rows([rundir])[0]


def read_rows(rundirs: Sequence[RunDir], queue: Queue | None = None) -> list[Row]:
    """The rows of many runs, with one question to Slurm for all of them."""
    drafts = [_Draft(rundir) for rundir in rundirs]
    known = [draft for draft in drafts if draft.story is not None]
    stories = [draft.story for draft in known if draft.story is not None]
    with noting([]):  # said by the row already
        correct([draft.rundir for draft in known], stories, queue)
    for draft, story in zip(known, stories, strict=True):
        draft.finish(story)
    return [draft.row for draft in drafts]


class _Draft:
    """A row on its way: what the run's own files say, before Slurm is asked. `story` is None if run.json is broken."""

    def __init__(self, rundir: RunDir) -> None:
        self.rundir = rundir
        self.row = Row(rundir.id, rundir=rundir)
        self.result: dict[str, Any] = {}
        self.story: Story | None = None
        with noting(self.row.problems):
            _take_record(self.row, rundir.record())
            self.row.state = ""
        if self.row.problems:
            self.row.cause = "run.json cannot be read"
            return
        with noting(self.row.problems):
            self.result = _checked_result(rundir)
        self.story = Story(state=BROKEN)
        with noting(self.row.problems):
            self.story = _story(rundir, self.result)

    def finish(self, story: Story) -> None:
        """Fill the row in."""
        row = self.row
        row.state, row.cause, row.attempts, row.step = story.state, story.cause, story.attempt, story.step
        row.slurm_job_id = story.slurm_job_id
        with noting(row.problems):
            if self.result.get("state") == story.state and "metrics" in self.result:
                _take_result(row, self.result)
            else:
                _take_metrics(row, self.rundir, story)


def read_config(rundir: RunDir) -> dict[str, Any]:
    """A run's resolved configuration with dotted keys; quicker than `hpctool.config.load`. Raises OSError, ValueError.

    C's YAML reader: a table of a thousand runs with a column of the configuration is otherwise ten seconds.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return flatten(yaml.load(rundir.config_yaml.read_bytes(), loader))  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(f"{rundir.config_yaml} is not YAML: {error}") from error


# ---------------------------------------------------------------------------------------------- choosing and sorting


def select(rows: Iterable[Row], *, states: Sequence[str] = (), job: str = "", sweep: str = "") -> list[Row]:
    """The rows that fit; `sweep` is the id of a sweep or its beginning. Raises UnknownName where none is called so."""
    rows = list(rows)
    if job and not any(row.job == job for row in rows):
        raise UnknownName("run of a job called", job, sorted({row.job for row in rows if row.job}))
    if sweep and not any((row.sweep or "").startswith(sweep) for row in rows):
        raise UnknownName("sweep", sweep, sorted({row.sweep for row in rows if row.sweep}))
    return [
        row
        for row in rows
        if (not states or row.state in states)
        and (not job or row.job == job)
        and (not sweep or (row.sweep or "").startswith(sweep))
    ]


def sort_rows(rows: Sequence[Row], key: str) -> list[Row]:
    """Sorted by a column; `-` before it puts the largest first. Rows without a value, or with NaN, stand last."""
    name, down = key.removeprefix("-"), key.startswith("-")
    check_columns(rows, [name])
    has = [row for row in rows if _is_there(row.value(name))]
    has.sort(key=lambda row: _sortable(row.value(name)), reverse=down)
    return has + [row for row in rows if not _is_there(row.value(name))]


def check_columns(rows: Sequence[Row], names: Iterable[str]) -> None:
    """Raise UnknownName for a column that no row has, with the nearest names."""
    for name in names:
        if not rows or name in FIELDS or any(name in row.metrics or name in row.changed for row in rows):
            continue
        if not any(name in row.config for row in rows):
            known = [key for row in rows for key in (*row.metrics, *row.changed, *row.config)]
            raise UnknownName("column", name, sorted({*known, *FIELDS}))


def _is_there(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def _sortable(value: Any) -> tuple[int, Any]:
    # Numbers compare as numbers, and stand before words.
    return (0, value) if isinstance(value, int | float) else (1, str(value))


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


def _take_record(row: Row, record: dict[str, Any]) -> None:
    row.name, row.job, row.created, row.by = (str(record[key]) for key in ("name", "job", "created", "by"))
    row.sweep = record.get("sweep")
    row.cell = None if record.get("cell") is None else int(record["cell"])
    row.changed = changed_values(record, typed_values(record.get("overrides") or []))
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
            first = decode_entry(ledger.path(1), ledger.path(1).read_bytes())
            return Story("completed", "", 1, newest.body["step"], first.get("slurm_job_id", ""))
    return rundir.story()


def _take_result(row: Row, result: dict[str, Any]) -> None:
    row.step = int(result.get("step", row.step))
    row.metrics = {name: from_json(value) for name, value in (result.get("metrics") or {}).items()}
    row.param_digest = result.get("param_digest")
    row.data_commit = result.get("data_commit") or row.data_commit


def _take_metrics(row: Row, rundir: RunDir, story: Story) -> None:
    last = read_last(rundir, story)
    row.metrics = {name: value for name, (_, value) in sorted(last.items())}
    if story.state in ("running", "stopping"):
        row.step = max([row.step, *(step for step, _ in last.values())])


def _dataset(inputs: list[dict[str, Any]]) -> str | None:
    return next((one["id"] for one in inputs if one["kind"] == "dataset"), None)


def _cell_rows(runs: Path, sweep_id: str, rows: dict[str, Row], queue: Queue | None) -> list[Row]:
    """The rows of a sweep's cells; those of cells that have not started are made and added."""
    sweep = cells.read_sweep(cells.sweeps_folder(runs) / sweep_id)
    body = sweep.body
    shared = {key: body.get(key) for key in ("name", "job", "created", "by", "varied")}
    waiting = {cell["index"]: cell for cell in body["cells"] if cell["run"] not in rows}
    for index, story in unbegun(runs, sweep, sorted(waiting), queue).items():
        cell = waiting[index]
        row = Row(cell["run"], state=story.state, cause=story.cause, slurm_job_id=story.slurm_job_id, plain={})
        _take_record(row, {**shared, **cell, "sweep": sweep_id, "cell": index})
        if "base" in cell:
            row.plain = flatten(body["bases"][cell["base"]]) | cell["set"]
        rows[row.id] = row
    return [rows[cell["run"]] for cell in body["cells"]]
