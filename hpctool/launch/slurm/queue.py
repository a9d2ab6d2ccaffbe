"""What Slurm's queue says of this user's jobs: one squeue, shared by all shells on this host.

/tmp/hpctool-<uid>/squeue-<key>.json holds the last answer. Whoever finds it too old asks anew, one process at a time
under a lock, and the others wait for that answer. An answer is good for ten seconds, or for five times as long as Slurm
took to give it: a controller that is busy, or that holds back users who ask too often, answers slowly. While it does
not answer at all it is asked more and more rarely, and the old answer stands, with its age.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import CorruptError, OperationError, SchedulerError
from hpctool.launch.private import private_folder
from hpctool.launch.slurm import ask, states

CACHE_FORMAT = 1
#: An answer is good for so long; HPCTOOL_SQUEUE_EVERY_S says otherwise.
EVERY_S = 10.0
#: … and for so many times as long as Slurm took to give it.
SLOWNESS = 5.0
#: While Slurm does not answer the pauses grow from `2 * EVERY_S` to this …
LONGEST_S = 300.0
#: … and so does the patience with it. (squeue itself gives a dead controller up after 18 s.)
TIMEOUT_S = 10.0
LONGEST_TIMEOUT_S = 60.0
_DAY_S = 86_400.0

#: `100_[3,5-9:2%4]`: the cells of an array that wait together.
_TOGETHER = re.compile(r"(\d+)_\[([^\]%]*)(?:%\d+)?\]")
_FIELDS = ("%i", "%T", "%l", "%M", "%S", "%N", "%r")


@dataclass(frozen=True)
class Job:
    """A job, or a cell of an array, as squeue shows it. Times are None where Slurm does not say."""

    #: Slurm's own word, in capitals
    state: str
    reason: str = ""
    nodes: str = ""
    #: when it began or is expected to, in seconds of time.time()
    start_s: float | None = None
    time_limit_s: float | None = None
    time_used_s: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has left the queue; squeue knows it for some minutes more."""
        return states.is_over(self.state)

    @property
    def waits(self) -> bool:
        """Whether it has no nodes yet, or no more."""
        return states.word(self.state) in ("queued", "requeued")


@dataclass(frozen=True)
class Answer:
    """All jobs by their id (`42`, or `42_7` for a cell), and when Slurm said so."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    #: in seconds of time.time(); 0 if Slurm has never answered
    asked_s: float = 0.0
    #: a sentence, if Slurm does not answer now
    problem: str = ""

    def is_after(self, time_s: float, skew_s: float = 5.0) -> bool:
        """Whether this tells of what happened at that time, by clocks that may differ by some seconds."""
        return self.asked_s > time_s + skew_s


class Queue:
    """The newest answer, for as long as it is good. Nothing is asked before somebody needs it."""

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._until_s = 0.0

    def answer(self) -> Answer:
        """What Slurm says, if need be what it last said. Never raises."""
        if self._answer is None or time.monotonic() >= self._until_s:
            self._answer, good_for_s = _newest()
            self._until_s = time.monotonic() + good_for_s
        return self._answer

    def forget(self) -> None:
        """Look at what all shells share once more, when somebody needs it next."""
        self._answer = None

    @property
    def problem(self) -> str:
        """Why Slurm does not answer; empty if it does, or if nobody had to ask."""
        return self._answer.problem if self._answer else ""


#: The one of this process.
QUEUE = Queue()


def every_s() -> float:
    """For how many seconds an answer is good."""
    return float(os.environ.get("HPCTOOL_SQUEUE_EVERY_S", EVERY_S))


def cluster_name() -> str:
    """The name of the cluster that is asked here, empty if it does not say. Two may share a file system."""
    return _cluster_name(*(os.environ.get(name, "") for name in ("SLURM_CONF", "SLURM_CLUSTERS", "PATH")))


@functools.cache
def _cluster_name(*_environment: str) -> str:
    """Asked once a day, and once in a process."""
    try:
        cache = private_folder() / f"cluster-{cache_key()}.json"
        with contextlib.suppress(OSError, CorruptError):
            return str(files.read_json(cache)["name"])
        name = ask.site_config(timeout_s=TIMEOUT_S).get("ClusterName", "")
        files.write_json(cache, {"name": name}, mode=0o600)
    except (OperationError, OSError):
        return ""
    return name


def _newest() -> tuple[Answer, float]:
    """The newest answer, and for how many seconds it is good."""
    try:
        cache = private_folder() / f"squeue-{cache_key()}.json"
    except (OperationError, OSError) as error:
        return Answer(problem=f"Slurm is not asked: {error}"), every_s()
    kept = _read(cache)
    if not _is_good(kept):
        with _lock(cache.with_suffix(".lock")) as mine:
            kept = _read(cache)
            if mine and not _is_good(kept):
                kept = _ask(kept)
                with contextlib.suppress(OSError):  # a full /tmp: then it is asked again next time
                    files.write_json(cache, kept, mode=0o600)
                    _sweep(cache.parent)
    good_for_s = kept["tried_s"] + max(kept["pause_s"], every_s()) - time.time()
    return Answer(parse(kept["text"]), kept["asked_s"], _problem(kept)), max(1.0, good_for_s)


def cache_key() -> str:
    """What tells one cluster's answers from another's on this host."""
    told = [os.environ.get(name, "") for name in ("SLURM_CONF", "SLURM_CLUSTERS")]
    return hashlib.sha256("\0".join([*told, shutil.which("squeue") or ""]).encode()).hexdigest()[:12]


def _read(cache: Path) -> dict[str, Any]:
    empty = {"format": CACHE_FORMAT, "asked_s": 0.0, "tried_s": 0.0, "pause_s": 0.0, "problem": "", "text": ""}
    with contextlib.suppress(OSError, CorruptError):
        kept = files.read_json(cache)
        if isinstance(kept, dict) and kept.get("format") == CACHE_FORMAT:
            return empty | kept
    return empty


def _is_good(kept: dict[str, Any]) -> bool:
    age_s = time.time() - float(kept["tried_s"])
    # The clock may have been set back.
    return 0 <= age_s < max(float(kept["pause_s"]), every_s())


def _ask(kept: dict[str, Any]) -> dict[str, Any]:
    """The answer of Slurm, or the old one with what was wrong; how long to keep quiet grows with its trouble."""
    began_s = time.time()
    patience_s = max(TIMEOUT_S, kept["pause_s"] / 2 if kept["problem"] else 0.0)
    # Without --array-unique a cell that was requeued is said among those that wait together, with their reason.
    options = ("--me", "--noheader", "--array-unique", "--states=all", f"--format={'|'.join(_FIELDS)}")
    try:
        text = ask.call(
            *("squeue", *options),
            timeout_s=min(LONGEST_TIMEOUT_S, patience_s),
        )
    except SchedulerError as error:
        pause_s = 2 * kept["pause_s"] if kept["problem"] else 2 * every_s()
        return kept | {"tried_s": time.time(), "pause_s": min(LONGEST_S, pause_s), "problem": str(error)}
    took_s = time.time() - began_s
    pause_s = min(LONGEST_S, max(every_s(), SLOWNESS * took_s))
    return kept | {"asked_s": began_s, "tried_s": time.time(), "pause_s": pause_s, "problem": "", "text": text}


def _problem(kept: dict[str, Any]) -> str:
    if not kept["problem"] or not kept["asked_s"]:
        return str(kept["problem"])
    minutes = (time.time() - kept["asked_s"]) / 60
    return f"{kept['problem']} What is said here of jobs that wait is {minutes:.0f} min old."


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """The right to ask: True for one process; False for those that have waited until another one has asked."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline_s = time.monotonic() + TIMEOUT_S + 5.0
        while time.monotonic() < deadline_s:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
                continue
            yield True
            return
        yield False
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove the answers of clusters that nobody has asked for a day."""
    for path in (*folder.glob("squeue-*"), *folder.glob("sacct-*"), *folder.glob("cluster-*")):
        if time.time() - path.stat().st_mtime > _DAY_S:
            path.unlink(missing_ok=True)


def parse(text: str) -> dict[str, Job]:
    """The lines of squeue as jobs by id; a line that is no job's (the name of a cluster) is left out."""
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        parts = line.split("|", len(_FIELDS) - 1)
        if len(parts) == len(_FIELDS):
            name, state, limit, used, start, nodes, reason = (part.strip() for part in parts)
            job = Job(
                state.upper(),
                "" if reason == "None" else reason,
                nodes,
                ask.moment_s(start),
                ask.seconds(limit),
                ask.seconds(used),
            )
            jobs |= dict.fromkeys(cell_ids(name), job)
    return jobs


def cell_ids(name: str) -> Iterator[str]:
    """The ids behind a name as squeue and sacct print it: `7_[3,5-6%2]` is three cells of an array."""
    together = _TOGETHER.fullmatch(name)
    if together is None:
        # The first part of a heterogeneous job has the job's own number.
        yield name.removesuffix("+0")
        return
    for part in together[2].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found:
            first, last = int(found[1]), int(found[2] or found[1])
            yield from (f"{together[1]}_{index}" for index in range(first, last + 1, int(found[3] or 1)))
