"""Metrics of a run: one file of JSON lines per attempt, and one curve out of all of them.

metrics/<attempt>.jsonl begins with {"format": 1, "attempt": 2}; each further line is one step:
{"s": 1200, "w": 1764000000.123, "m": {"train/loss": 0.31}}, `s` the step, `w` the Unix time in seconds. JSON has no
NaN and no infinity, so they are the words "nan", "inf" and "-inf".

An attempt that is killed at step 900 and comes back from its checkpoint of step 500 has written 501 to 900 for
nothing: the reader cuts each attempt where the next one began, so that no step appears twice.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from hpctool import config, files
from hpctool.errors import InputError, NewerFormat
from hpctool.rundir import RunDir, Story
from hpctool.track.meters import Meters
from hpctool.world import World

if TYPE_CHECKING:
    from hpctool.track.tensorboard import EventWriter

METRICS_FORMAT = 1

#: A metric's name → its points (step, value), in order of the step; each step at most once.
Curves = dict[str, list[tuple[int, float]]]

#: A metric's name → its newest point.
Last = dict[str, tuple[int, float]]

#: Told of everything that is logged on rank 0, before it reaches the disk: the run, the step and the numbers.
Listener = Callable[[RunDir, int, Mapping[str, float]], None]
listeners: list[Listener] = []

_WRITE_EVERY_S = 5.0
_WRITE_EVERY_BYTES = 64 * 1024
_TAIL_BYTES = 64 * 1024


def to_json(value: float) -> float | str:
    """A number as JSON can hold it: NaN and the infinities become the words `nan`, `inf` and `-inf`."""
    return value if math.isfinite(value) else str(value)


def from_json(value: Any) -> float:
    """A number that `to_json` wrote. Raises TypeError, ValueError on anything else."""
    return float(value)


def same(a: float, b: float) -> bool:
    """Whether two numbers are equal to the last bit; NaN equals NaN."""
    # Not math.isnan: an int may be too large for a float.
    return a == b or (a != a and b != b)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n − 1); NaN where they do not exist: a value that is not finite, or too few."""
    # `statistics` raises AttributeError on NaN and infinity up to Python 3.11.
    if not values or not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


class MetricWriter:
    """Writes the metrics of one attempt; on any rank but 0 it does nothing.

    What is logged reaches the disk after 5 s or 64 KB, and for certain with `flush`, which belongs to every
    checkpoint and may be called by the thread that commits it. Use it as a context manager: TensorBoard learns that the
    run is done only if its block ended well.
    """

    def __init__(self, rundir: RunDir, world: World) -> None:
        self.rundir = rundir
        self.path = rundir.metrics()
        self._active = world.is_main
        self._lines: list[bytes] = []
        self._num_bytes = 0
        self._written_at = time.monotonic()
        self._handle = -1
        self._lock = threading.Lock()
        self._events: EventWriter | None = None
        track = _track_of(rundir) if self._active else {}
        self._wants_events = bool(track.get("tensorboard", False))
        self._meters = Meters(float(track.get("system_every_s", 0)))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Note numbers of one step; values are anything that `float()` takes. Raises InputError on others.

        A disk that is full does not stop the training here: the lines are kept, and `flush` will say so.
        """
        if not self._active:
            return
        numbers = {name: _number(name, step, value) for name, value in values.items()} | self._meters.due()
        wall_time = time.time()
        with self._lock:
            if not self._lines and self._handle < 0:
                self._add({"format": METRICS_FORMAT, "attempt": self.rundir.attempt})
            self._add({"s": step, "w": round(wall_time, 3), "m": {k: to_json(v) for k, v in numbers.items()}})
            self._to_events(lambda events: events.log(step, wall_time, numbers), first_step=step)
            if self._num_bytes >= _WRITE_EVERY_BYTES or time.monotonic() - self._written_at >= _WRITE_EVERY_S:
                try:
                    self._write()
                except OSError as error:
                    warnings.warn(f"Metrics wait in memory, {self.path} cannot be written: {error}", stacklevel=2)
        for listener in tuple(listeners):
            listener(self.rundir, step, numbers)

    def flush(self) -> None:
        """Make durable what was logged so far. Raises OSError."""
        with self._lock:
            if self._lines:
                self._write()
        # Outside: a disk that takes its time does not hold up who logs.
        if self._handle >= 0:
            os.fsync(self._handle)

    def rewind(self) -> None:
        """The run has gone back to an earlier step: what is logged from now on replaces what was logged before."""
        with self._lock:
            self._to_events(lambda events: events.close(completed=False))
        # The next one tells TensorBoard from which step on it replaces the others.
        self._events = None

    def close(self, *, completed: bool = True) -> None:
        """Flush and end; `completed` says whether the run has reached its end. Raises OSError."""
        if not self._active:
            return
        self._active = False
        self._meters.close()
        try:
            self.flush()
        finally:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1
            self._to_events(lambda events: events.close(completed=completed))

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(completed=kind is None)

    def _add(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._lines.append(data)
        self._num_bytes += len(data)

    def _write(self) -> None:
        """Append the buffered lines as a whole: after a short write the file is cut back and the lines are kept."""
        self._written_at = time.monotonic()
        if self._handle < 0:
            self.path.parent.mkdir(exist_ok=True)
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            files.fsync_dir(self.path.parent)
        whole = os.fstat(self._handle).st_size
        view = memoryview(b"".join(self._lines))
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError:
            os.ftruncate(self._handle, whole)
            raise
        self._lines.clear()
        self._num_bytes = 0
        self._to_events(lambda events: events.flush())

    def _to_events(self, action: Callable[[EventWriter], None], first_step: int | None = None) -> None:
        """Do something with the event file, if there is one; it is a courtesy and never ends a training."""
        if not self._wants_events or (self._events is None and first_step is None):
            return
        try:
            if self._events is None:
                from hpctool.track.tensorboard import EventWriter

                assert first_step is not None
                self._events = EventWriter(self.rundir, first_step)
            action(self._events)
        except OSError as error:
            self._wants_events = False
            warnings.warn(f"TensorBoard files of {self.rundir.id} end here: {error}", stacklevel=3)


def _track_of(rundir: RunDir) -> Mapping[str, Any]:
    """What the configuration says of tracking; runs of other jobs, and of earlier versions, say less."""
    found: Mapping[str, Any] = OmegaConf.select(config.load(rundir.config_yaml), "track", default=None) or {}
    return found


def _number(name: str, step: int, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The metric '{name}' of step {step} is a {type(value).__name__}, not a number; log one number per name."
        ) from error


# ---------------------------------------------------------------------------------------------- reading


def read_metrics(rundir: RunDir, story: Story | None = None) -> Curves:
    """All metrics of a run as one curve each, also while it is running.

    `story` saves reading the ledger again. A torn last line is ignored. Raises NewerFormat.
    """
    written = {attempt: list(_read_lines(rundir.metrics(attempt))) for attempt in _attempts(rundir)}
    resumed = _resumed(story or rundir.story())
    points: dict[str, dict[int, float]] = {}
    kept: list[tuple[int, float]] = []
    limit = math.inf
    for attempt in sorted({*written, *resumed}, reverse=True):
        kept.append((attempt, limit))
        lines = written.get(attempt, [])
        # An attempt that never said where it resumed replaces everything from its own first step on.
        began = resumed.get(attempt, min((line["s"] for line in lines), default=math.inf) - 1)
        limit = min(limit, began)
    for attempt, last_step in reversed(kept):
        for line in written.get(attempt, []):
            if line["s"] <= last_step:
                for name, value in line["m"].items():
                    points.setdefault(name, {})[line["s"]] = from_json(value)
    return {name: sorted(points[name].items()) for name in sorted(points)}


def read_last(
    rundir: RunDir, story: Story | None = None, *, is_whole: bool = False, before: Last | None = None
) -> Last:
    """The newest point (step, value) of each metric, from the ends of the newest files: for tables of many runs.

    Where `is_whole` says that `story` knows every attempt, the folder need not be listed; `before` is what
    `read_before` gave for this attempt.
    """
    story = story or rundir.story()
    newest = story.attempt if is_whole else max([story.attempt, *_attempts(rundir)])
    own = _last_of(_end(rundir, newest) or [])
    if before is None:
        began_anew = own and newest not in _resumed(story)
        before = {} if began_anew else _before(rundir, story, newest)
    return before | _reaching(rundir, newest, own, before.keys())


def _reaching(rundir: RunDir, attempt: int, own: Last, names: Iterable[str]) -> Last:
    """`own`, from the end of an attempt's file, with those of `names` that it has logged earlier only."""
    tail_bytes, size = _TAIL_BYTES, 0
    if own:
        size = os.stat(rundir.metrics(attempt)).st_size
    while tail_bytes < size and not own.keys() >= set(names):
        tail_bytes *= 8
        own = _last_of(_end(rundir, attempt, tail_bytes) or [])
    return own


def read_before(rundir: RunDir, story: Story) -> Last | None:
    """What the attempts before the newest have measured, up to where that resumed: nothing will change it any more.

    None while the newest has not said where it resumed.
    """
    return _before(rundir, story, story.attempt) if story.attempt in _resumed(story) else None


def _before(rundir: RunDir, story: Story, newest: int) -> Last:
    """The newest points in the two files before that of attempt `newest`, as far as they were not replaced."""
    resumed = _resumed(story)
    last: Last = {}
    limit = math.inf
    for attempt, lines in itertools.islice(_earlier(rundir, newest), 2):
        limit = min([limit, *(step for later, step in resumed.items() if later > attempt)])
        last = _last_of(line for line in lines if line["s"] <= limit) | last
        if lines and attempt not in resumed:
            break
    return last


def _earlier(rundir: RunDir, newest: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The attempts before `newest` that have a file, with its end: the first two are tried before all are listed."""
    tried = list(range(newest - 1, 0, -1))[:2]
    for attempt in tried:
        if (lines := _end(rundir, attempt)) is not None:
            yield attempt, lines
    if tried and tried[-1] > 1:
        for attempt in reversed([one for one in _attempts(rundir) if one < tried[-1]]):
            yield attempt, _end(rundir, attempt) or []


def _end(rundir: RunDir, attempt: int, tail_bytes: int = _TAIL_BYTES) -> list[dict[str, Any]] | None:
    """The lines at the end of an attempt's file; None if it has none."""
    try:
        return list(_read_lines(rundir.metrics(attempt), tail_bytes)) if attempt else None
    except FileNotFoundError:
        return None


def _last_of(lines: Iterable[dict[str, Any]]) -> Last:
    """The point of the highest step of each metric."""
    last: Last = {}
    for line in sorted(lines, key=lambda line: -line["s"]):
        for name, value in line["m"].items():
            last.setdefault(name, (line["s"], from_json(value)))
    return last


def reported(rundir: RunDir) -> dict[str, float | str]:
    """The newest value of each metric that a run's own work has measured, as result.json holds it; not of meters."""
    curves = read_metrics(rundir)
    return {name: to_json(points[-1][1]) for name, points in curves.items() if not name.startswith("system/")}


def summary(curves: Curves) -> dict[str, dict[str, Any]]:
    """Per metric its last, min and max value and the steps of min and max; JSON-able, see `to_json`.

    NaN is never the min or max while there is a number; the earliest step counts where a value comes again.
    """
    found = {}
    for name, points in curves.items():
        numbers = [p for p in points if not math.isnan(p[1])] or points
        low = min(numbers, key=lambda p: p[1])
        high = max(numbers, key=lambda p: p[1])
        found[name] = {
            "last": to_json(points[-1][1]),
            "min": to_json(low[1]),
            "max": to_json(high[1]),
            "min_step": low[0],
            "max_step": high[0],
        }
    return found


def _resumed(story: Story) -> dict[int, int]:
    """Attempt → the step it resumed from, for those that said so."""
    return {body["attempt"]: body["step"] for body in story.of_kind("resumed")}


def _attempts(rundir: RunDir) -> list[int]:
    try:
        names = os.listdir(rundir.metrics(1).parent)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-6]) for name in names if name.endswith(".jsonl") and name[:-6].isdigit())


def _read_lines(path: Path, tail_bytes: int = 0) -> Iterator[dict[str, Any]]:
    """The lines of one attempt, or those within its last `tail_bytes`; one that cannot be read is said and skipped."""
    data, is_all = files.read_tail(path, tail_bytes) if tail_bytes else (files.read_small(path), True)
    if not is_all:
        data = data.partition(b"\n")[2]
    # What follows the last newline is still being written, or was torn by a kill.
    for raw in data.split(b"\n")[:-1]:
        try:
            line = json.loads(raw)
            if "s" in line:
                {from_json(value) for value in line["m"].values()}
                yield line
            elif line["format"] > METRICS_FORMAT:
                raise NewerFormat(path, "metrics file", line["format"], METRICS_FORMAT)
        except (ValueError, TypeError, KeyError, AttributeError):
            warnings.warn(f"A line of {path} cannot be read and is left out: {raw[:60]!r}", stacklevel=2)
