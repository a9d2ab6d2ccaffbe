"""The journal: every prediction that was given, with what was asked, in immutable segments.

<root>/journals/<model>/
  objects/ab/<sha256>.h5   segments, written by the dataset's own object writer
  log/                     facts: one entry per segment, which counts when its entry exists

A segment holds predictions of one model version by one writer, numbered `first` … `first + rows - 1`; a prediction's
id is `<writer>-<number>`. What is buffered is lost with a kill; what was flushed is not.

N rows, K classes
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.data.layout import Layout
from hpctool.data.objects import StoredObject, damage, read_array, write_object
from hpctool.errors import CorruptError, InputError, NewerFormat, UnknownName
from hpctool.log import Entry, Log
from hpctool.world import Array

JOURNAL_FORMAT = 1
#: What a segment holds beside `input`, which has the dtype and shape of the model's input.
COLUMNS = ("number", "time", "request", "source", "input", "probabilities", "logits")
#: Bytes that a request's id with its row index, and a source, may have.
REQUEST_BYTES, SOURCE_BYTES = 64, 32

_ID = re.compile(r"([0-9a-f]{8})-(\d{6,})")
_DTYPES: dict[str, npt.DTypeLike] = {
    "number": np.int64,
    "time": np.float64,
    "request": f"S{REQUEST_BYTES}",
    "source": f"S{SOURCE_BYTES}",
    "probabilities": np.float32,
    "logits": np.float32,
}


def prediction_id(writer: str, number: int) -> str:
    """`3fa1c09b-000042`."""
    return f"{writer}-{number:06d}"


@dataclass(frozen=True)
class Origin:
    """What all predictions of one writer share."""

    #: the model version, `digits@0001`, and its manifest's digest
    model: str
    bundle: str
    #: server or score
    origin: str
    #: the run that served or scored
    run: str
    #: the dataset commit whose rows were scored; empty for a server
    data_commit: str = ""


@dataclass(frozen=True)
class Segment:
    """One segment as its entry in the log says it; `start` and `end` are the times of its first and last row."""

    writer: str
    first: int
    rows: int
    origin: Origin
    start: str
    end: str
    stored: StoredObject

    def to_json(self) -> dict[str, Any]:
        """The body of the log's entry."""
        numbers = {"writer": self.writer, "first": self.first, "rows": self.rows}
        times = {"from": self.start, "to": self.end}
        fact = {"kind": "segment", "format": JOURNAL_FORMAT}
        return {**fact, **numbers, **vars(self.origin), **times, "object": self.stored.to_json()}

    @classmethod
    def from_json(cls, body: dict[str, Any], path: Path) -> Segment:
        """Raises NewerFormat, CorruptError where the body is none of ours."""
        if body.get("format", 0) > JOURNAL_FORMAT:
            raise NewerFormat(path, "journal", body["format"], JOURNAL_FORMAT)
        try:
            origin = Origin(*(str(body[key]) for key in Origin.__dataclass_fields__))
            numbers = str(body["writer"]), int(body["first"]), int(body["rows"])
            return cls(*numbers, origin, str(body["from"]), str(body["to"]), StoredObject.from_json(body["object"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(path, f"it describes no segment ({error!r})") from error


def write_segment(folder: Path, writer: str, origin: Origin, columns: Mapping[str, Array]) -> Segment:
    """Write predictions as one segment, durably; `columns` are all of COLUMNS, numbers ascending without a gap.

    Raises OSError, then nothing counts as written.
    """
    arrays = {name: columns[name].astype(_DTYPES.get(name, columns[name].dtype), copy=False) for name in COLUMNS}
    stored = write_object(Layout(folder), arrays)
    first, rows = int(arrays["number"][0]), len(arrays["number"])
    start, end = _iso(float(arrays["time"].min())), _iso(float(arrays["time"].max()))
    segment = Segment(writer, first, rows, origin, start, end, stored)
    _log(folder).append(segment.to_json())
    return segment


class Predictions:
    """Rows of a journal in the order of its log; `arrays` holds the columns that were read, each (N, …)."""

    def __init__(self, segments: list[Segment], counts: list[int], arrays: dict[str, Array]) -> None:
        self._segments = segments
        self._counts = counts
        self.arrays = arrays

    def __len__(self) -> int:
        return sum(self._counts)

    @cached_property
    def ids(self) -> list[str]:
        """The predictions' ids."""
        numbers = iter(self.arrays["number"].tolist())
        return [prediction_id(writer, next(numbers)) for writer in self._each(s.writer for s in self._segments)]

    @cached_property
    def model(self) -> list[str]:
        """The version that gave each prediction: `digits@0001`."""
        return list(self._each(s.origin.model for s in self._segments))

    @property
    def time(self) -> npt.NDArray[np.float64]:
        """When it was answered: seconds since 1970, (N,)."""
        return self.arrays["time"]

    @property
    def request(self) -> list[str]:
        """The client's id of the request and the row in it, `<id>:<row>`; the row's uid where a dataset was scored."""
        return [text.decode() for text in self.arrays["request"].tolist()]

    @property
    def source(self) -> list[str]:
        """Where the client said that the rows come from; empty where it did not."""
        return [text.decode() for text in self.arrays["source"].tolist()]

    @property
    def input(self) -> Array:
        """What was asked, in the dtype and shape of the model's input, (N, …)."""
        return self.arrays["input"]

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Calibrated probabilities, (N, K)."""
        return self.arrays["probabilities"]

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Raw logits, (N, K)."""
        return self.arrays["logits"]

    def _each(self, values: Iterable[str]) -> Iterator[str]:
        for value, count in zip(values, self._counts, strict=True):
            yield from (value for _ in range(count))


@dataclass(frozen=True)
class Prediction:
    """One row of a journal, and the segment that it stands in."""

    id: str
    time: float
    request: str
    source: str
    input: Array
    probabilities: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    segment: Segment


class Journal:
    """The predictions of one model, for readers. What is damaged is set aside, said once and counted in `lost_rows`.

    With `last_entry` it stays what it was when its log ended there.
    """

    def __init__(self, folder: Path, last_entry: int | None = None) -> None:
        self.folder = folder
        self.last_entry = last_entry
        self.layout = Layout(folder)
        #: rows of segments that cannot be read, and numbers that are missing between a server's segments
        self.lost_rows = 0
        self._log = _log(folder)
        self._damaged: set[int] = set()
        self._segments: dict[int, Segment] = {}

    def newest_entry(self) -> int:
        """The number of the log's last entry, 0 while it is empty; no segment is opened."""
        return self._log.last()

    def segments(self) -> list[Segment]:
        """The whole segments, in the order of the log; what was added since is found by asking again.

        Raises NewerFormat.
        """
        return [segment for segment, _ in self._kept()]

    def _kept(self) -> list[tuple[Segment, int]]:
        """The whole segments, and how many of their first rows others hold already. Raises NewerFormat."""
        for entry in self._log.entries():
            if self.last_entry is not None and entry.number > self.last_entry:
                break
            if entry.number not in self._segments and entry.number not in self._damaged:
                self._look_at(entry)
        kept = self._without_repetitions()
        self.lost_rows = sum(self._segments[n].rows for n in kept if n in self._damaged)
        self.lost_rows += _missing_numbers(list(self._segments.values()))
        return [(self._segments[n], num_held) for n, num_held in kept.items() if n not in self._damaged]

    def read(
        self,
        *,
        source: str | None = None,
        model: str | None = None,
        since: float | None = None,
        until: float | None = None,
        columns: Iterable[str] | None = None,
    ) -> Predictions:
        """The predictions of one source, one model version (`digits@0001`) and a time (unix, `since` <= t < `until`).

        `columns` are some of COLUMNS (default: all); numbers are always read. Raises InputError where the versions
        take inputs of different shapes, CorruptError where a segment is damaged while it is read.
        """
        wanted = [name for name in COLUMNS if columns is None or name in (*columns, "number")]
        segments, counts, parts = [], [], []
        for segment, num_held in self._kept():
            if model is not None and segment.origin.model != model:
                continue
            rows = self._chosen(segment, num_held, source, since, until)
            if rows is not None and not len(rows):
                continue
            part = {name: read_array(self.layout, segment.stored, name) for name in wanted}
            part = part if rows is None else {name: array[rows] for name, array in part.items()}
            segments.append(segment)
            counts.append(len(part["number"]))
            parts.append(part)
        return Predictions(segments, counts, {name: self._joined(name, parts) for name in wanted})

    def find(self, prediction_id: str) -> Prediction:
        """One prediction by its id. Raises UnknownName."""
        match = _ID.fullmatch(prediction_id)
        for segment in self.segments() if match else []:
            assert match is not None
            row = int(match[2]) - segment.first
            if segment.writer == match[1] and 0 <= row < segment.rows:
                values = [read_array(self.layout, segment.stored, name)[row] for name in COLUMNS[1:]]
                time_s, request, source, inputs, probabilities, logits = values
                said = float(time_s), _text(request), _text(source)
                return Prediction(match[0], *said, inputs, probabilities, logits, segment)
        raise UnknownName(f"prediction in the journal of '{self.folder.name}' called", prediction_id, [])

    def _look_at(self, entry: Entry) -> None:
        """Take an entry's segment up; a damaged one is told from a whole one by its checksum."""
        try:
            segment = Segment.from_json(entry.body, self._log.path(entry.number))
            self._segments[entry.number] = segment
            if problem := damage(self.layout.object(segment.stored.id), segment.stored.id, segment.stored.size_bytes):
                lost = f"It held {segment.rows} predictions of {segment.origin.model}."
                raise CorruptError(self.layout.object(segment.stored.id), problem, lost)
        except CorruptError as error:
            self._damaged.add(entry.number)
            warnings.warn(f"A journal segment was set aside and the others are used: {error}", stacklevel=4)

    def _without_repetitions(self) -> dict[int, int]:
        """The entries that hold numbers of their own, and how many of their first rows others hold already.

        Two may score the same at once, and with segments of other sizes, so that these overlap anyhow.
        """
        held: dict[int, int] = {}
        ends: dict[str, int] = {}
        firsts: set[tuple[str, int]] = set()
        # Damaged ones last: they count as lost where no whole one begins at the same number.
        order = sorted(self._segments.items(), key=lambda e: (e[0] in self._damaged, e[1].writer, e[1].first, e[0]))
        for number, segment in order:
            if number in self._damaged:
                if (segment.writer, segment.first) not in firsts:
                    held[number] = 0
            elif (end := ends.get(segment.writer, 0)) < segment.first + segment.rows:
                held[number] = max(0, end - segment.first)
                ends[segment.writer] = segment.first + segment.rows
            firsts.add((segment.writer, segment.first))
        return dict(sorted(held.items()))

    def _chosen(
        self, segment: Segment, num_held: int, source: str | None, since: float | None, until: float | None
    ) -> Array | None:
        """The rows of a segment that were asked for, int64 (n,); None for all of them, without reading it."""
        keep = np.arange(segment.rows) >= num_held
        if since is not None or until is not None:
            time_N = read_array(self.layout, segment.stored, "time")
            keep &= (time_N >= (-np.inf if since is None else since)) & (time_N < (np.inf if until is None else until))
        if source is not None:
            keep &= read_array(self.layout, segment.stored, "source") == source.encode()
        return None if keep.all() else np.flatnonzero(keep)

    def _joined(self, name: str, parts: list[dict[str, Array]]) -> Array:
        arrays = [part.pop(name) for part in parts]
        if not arrays:
            shape = (0,) if name in ("number", "time", "request", "source", "input") else (0, 0)
            return np.zeros(shape, _DTYPES.get(name, np.float32))
        if len({(a.dtype, a.shape[1:]) for a in arrays}) > 1:
            raise InputError(
                f"The versions of '{self.folder.name}' in its journal have a different {name}: "
                "ask for one of them by its version."
            )
        return np.concatenate(arrays)


#: what begins a journal
_MAKE = "It begins with the first answer: hpctool serve, or hpctool score."


def open_journal(journals: Path, name: str, last_entry: int | None = None) -> Journal:
    """The journal of a model that has one, as it was when its log ended at `last_entry`. Raises UnknownName."""
    folder = journals / name
    if not (folder / "log").is_dir():
        known = sorted(p.parent.name for p in journals.glob("*/log"))
        raise UnknownName("journal of a model called", name, known, f"They lie in {journals.absolute()}.", _MAKE)
    return Journal(folder, last_entry)


def _text(value: Any) -> str:
    return bytes(value).decode()


def _log(folder: Path) -> Log:
    return Log(folder / "log")


def _missing_numbers(segments: list[Segment]) -> int:
    """Rows between the segments of servers that no entry speaks of: an entry itself was lost."""
    missing, ends = 0, dict[str, int]()
    for segment in sorted(segments, key=lambda s: (s.writer, s.first)):
        if segment.origin.origin == "server":
            missing += max(0, segment.first - ends.get(segment.writer, 0))
            ends[segment.writer] = segment.first + segment.rows
    return missing


def _iso(time_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(time_s, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
