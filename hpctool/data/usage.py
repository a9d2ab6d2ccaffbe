"""Usage: which runs used which version of a dataset. Kept for ever as records, and as a lease while a run is at it.

A record says the commit, the split and the order of samples, so that `exposure.py` can compute which step saw a row. A
lease (pin) is a file that its holder makes young again every few minutes: it ends with the run, however that ends, and
nobody needs to ask the node whether a process is alive. An export holds one, too. Where a dataset may only be read both
are left out, said once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.data.manifest import check_format
from hpctool.data.store import Store
from hpctool.data.version import Version
from hpctool.errors import CorruptError, HpctoolError
from hpctool.rundir import UNDERWAY, RunDir, list_run_ids, now, who

#: A pin that nobody has renewed for so long belongs to nobody: a node may be cut off for a while.
LEASE_S = 3600.0
_RENEW_S = 300.0
_LONGEST_LEASE_S = 30 * 86_400.0
USE_FORMAT = 1
#: The version of an order that only a program of the user's knows, which read a version by itself.
OWN = 0
_COMMIT = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Order:
    """In which order a run takes the rows of a split: what `hpctool.data.order.Order` was given, and the batch."""

    seed: int
    window: int
    global_batch_size: int
    #: hpctool.data.order.VERSION, or OWN
    version: int


@dataclass(frozen=True)
class Use:
    """A run that used a version. `order` is None where the rows were read in their own order, each once."""

    run: str
    job: str
    #: the run's folder, as it was seen where the run ran
    folder: str
    commit: str
    #: empty for all rows, whatever their split
    split: str
    order: Order | None
    by: str
    time: str

    @classmethod
    def from_json(cls, path: Path, value: Any) -> Use:
        """Parse and check a record. Raises NewerFormat, CorruptError."""
        check_format(path, "record of a run", value, USE_FORMAT)
        try:
            order = value["order"]
            texts = {name: str(value[name]) for name in ("run", "job", "folder", "commit", "split", "by", "time")}
            return cls(order=Order(**{name: int(n) for name, n in order.items()}) if order else None, **texts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(path, f"it is no record of a run ({type(error).__name__}: {error})") from error


class Pin:
    """A hold on a version, renewed by a thread until `release` or the end of the process."""

    def __init__(self, store: Store, name: str, text: bytes) -> None:
        self.layout, self.path, self.text = store.layout, store.layout.pins / name, text
        self._done = threading.Event()
        self.layout.write(self.path, text)
        atexit.register(self.release)
        self._thread = threading.Thread(target=self._renew, name="pin", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go. A second time does nothing."""
        atexit.unregister(self.release)
        if not self._done.is_set():
            self._done.set()
            self._thread.join(timeout=5)
            self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._done.wait(_RENEW_S):
            # A file system that is away for a moment does no harm: the lease is long.
            with contextlib.suppress(OSError):
                try:
                    os.utime(self.path)
                except FileNotFoundError:  # it had run out, as after a suspension: it is needed again
                    self.layout.write(self.path, self.text)


def begin_use(version: Version, rundir: RunDir, job: str, splits: Mapping[str, Order | None]) -> Pin | None:
    """Record that a run uses some splits of a version, and pin that while this process lives. For one rank only.

    Where the dataset cannot be written the run goes on without, and one sentence says so.
    """
    folder = str(rundir.path.absolute())
    found = [Use(rundir.id, job, folder, version.commit, split, order, who(), now()) for split, order in splits.items()]
    try:
        for use in found:
            _record(version.store, use)
        return _pin(version.store, rundir.id, found[0])
    except OSError as error:
        _say_unheld(version, error, f"so it does not record that this run uses {version.pinned}, and")
        return None


@contextlib.contextmanager
def held(version: Version, job: str, folder: Path) -> Iterator[None]:
    """Pin a version while something that is no run reads it for long; `folder` is what it makes of it.

    Where the dataset cannot be written it is read without a pin, and one sentence says so.
    """
    pin = None
    try:
        pin = _pin(version.store, job, Use("", job, str(folder.absolute()), version.commit, "", None, who(), now()))
    except OSError as error:
        _say_unheld(version, error, f"so while this {job} reads {version.pinned}")
    try:
        yield
    finally:
        if pin is not None:
            pin.release()


def _pin(store: Store, who_holds: str, use: Use) -> Pin:
    pin = {"format": USE_FORMAT, "lease_s": LEASE_S, "host": socket.gethostname(), "pid": os.getpid()}
    return Pin(store, f"{who_holds}-{uuid.uuid4().hex[:16]}", files.canonical_json(pin | asdict(use)))


def _say_unheld(version: Version, error: OSError, so: str) -> None:
    print(
        f"hpctool: {version.store.root} cannot be written ({error.strerror}), {so} nothing keeps others from deleting "
        "that. It goes on.",
        file=sys.stderr,
        flush=True,
    )


def uses(store: Store) -> Iterator[Use | HpctoolError]:
    """Every record of a run, in order of name; the error itself for one that cannot be read."""
    for path in _files(store.layout.runs):
        if path.suffix == ".json":
            try:
                yield Use.from_json(path, files.read_json(path))
            except HpctoolError as error:
                yield error
            except OSError as error:
                yield CorruptError(path, f"it cannot be read ({error.strerror})")


def recent_uses(store: Store, since_s: float) -> Iterator[Use]:
    """The records of runs that began an attempt since a time by the file system's clock. Raises CorruptError."""
    for path in _files(store.layout.runs):
        if path.suffix == ".json" and path.stat().st_mtime >= since_s:
            yield Use.from_json(path, files.read_json(path))


def pins(store: Store, now_s: float) -> Iterator[tuple[Path, Use, bool]]:
    """Every pin, whose it is, and whether its lease has not run out. Raises CorruptError."""
    for path in _files(store.layout.pins):
        try:
            value, age_s = files.read_json(path), now_s - path.stat().st_mtime
        except FileNotFoundError:
            continue  # released meanwhile
        use = Use.from_json(path, value)
        yield path, use, age_s < min(float(value.get("lease_s", LEASE_S)), _LONGEST_LEASE_S)


def commits_in_use(store: Store, runs: Path) -> list[str]:
    """The commits that runs of a folder which are queued or under way are to use, and those that sweeps name.

    These hold no pin yet. What cannot be read, as the private runs of others, is passed over: they have pins of theirs.
    """
    found = set()
    for run_id in list_run_ids(runs):
        rundir = RunDir(runs / run_id)
        with contextlib.suppress(HpctoolError, OSError):
            commits = [str(one["id"]) for one in rundir.inputs() if one["kind"] == "dataset"]
            if any(map(store.has_commit, commits)) and rundir.story().state in UNDERWAY:
                found.update(commits)
    for sweep in runs.glob("sweeps/*/sweep.json"):
        # Cells that have not begun have no folder; whether all have is not asked.
        with contextlib.suppress(OSError):
            found.update(_COMMIT.findall(sweep.read_text(errors="replace")))
    return sorted(filter(store.has_commit, found))


def _record(store: Store, use: Use) -> None:
    """Write the record, once for each run, version and split; an attempt that comes back makes it young again."""
    layout = store.layout
    which = files.sha256_bytes(files.canonical_json([use.folder, use.commit, use.split]))[:16]
    path = layout.runs / f"{use.run}.{which}.json"
    if not path.exists() or not layout.renew(path):
        layout.write(path, files.canonical_json({"format": USE_FORMAT, **asdict(use)}) + b"\n")


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
