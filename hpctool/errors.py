"""Every error that hpctool raises on purpose. A message says what was asked, what was found and what to do next.

HpctoolError                          exit code 1
├── InputError                        exit code 2: what was asked cannot be; nothing was written
│   ├── ConfigError                   a key, a type or a value of the configuration
│   ├── UnknownName                   a dataset, revision, run, model … that is not there
│   ├── MergeConflict                 two branches that changed the same rows otherwise
│   ├── TargetError                   an importable name (`_target_`) that cannot be imported
│   └── SourceError                   a file or row that was to be read in
├── OperationError                    exit code 1: it was asked rightly and failed
│   ├── CorruptError                  what is on disk is not what was written
│   ├── NewerFormat                   written by a newer hpctool than this one
│   ├── ConflictError                 somebody else changed the same thing meanwhile
│   ├── FencedError                   a newer attempt of this run has begun; this one may not write
│   ├── CancelledError                a job of a run that its user has cancelled has begun all the same
│   ├── WorldError                    ranks that cannot find each other or do not agree
│   ├── DesyncError                   ranks that are no longer alike in what they train
│   ├── HangError                     ranks that have not got any further for too long
│   ├── NodeError                     nodes that fail the check before a job begins
│   ├── ProgramError                  somebody's own program ended with an error
│   ├── SubmitError                   the scheduler refused
│   ├── SchedulerError                the scheduler cannot be asked, or does not answer
│   └── ParityError                   an exported model that does not answer like the original
└── Stopped                           exit code 75: stopped on request, saved, to be continued
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_CONTINUE = 75
EXIT_INTERRUPTED = 130


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of the known names that look most like `name`, the best first; none that is much worse."""
    names = list(dict.fromkeys(known))
    likeness = {other: difflib.SequenceMatcher(None, name, other).ratio() for other in names}
    best = max(likeness.values(), default=0.0)
    found = [other for other in names if likeness[other] >= max(0.5, best - 0.15)]
    found.sort(key=lambda other: -likeness[other])
    # 'lr' for 'optim.lr': the last part of a dotted key is often all that somebody remembers.
    tail = name.rsplit(".", 1)[-1]
    found += [other for other in names if other not in found and other.rsplit(".", 1)[-1] == tail]
    return found[:count]


def listing(names: Iterable[str], limit: int = 8) -> str:
    """`a, b, c and 12 more`, or `none`: a list short enough for one sentence."""
    items = list(names)
    if not items:
        return "none"
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 row`, `2,000 rows`: a number and what it counts; `many` is the word for several, else `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size_text(size_bytes: float) -> str:
    """A size in bytes, kB, MB …, three places."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


class HpctoolError(Exception):
    """Anything that hpctool reports in one sentence instead of a traceback."""

    exit_code = EXIT_FAILED

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process hands its error to its parent; not through __init__, which builds the sentence from fields.
        return _revived, (type(self), str(self), vars(self))


class InputError(HpctoolError):
    """What was asked cannot be; nothing was written."""

    exit_code = EXIT_INPUT


class ConfigError(InputError):
    """A key, type or value of the configuration that does not fit."""

    def __init__(self, key: str, problem: str, near: Iterable[str] = ()) -> None:
        self.key = key
        self.problem = problem
        self.near = list(near)
        hint = f" Did you mean {' or '.join(self.near)}?" if self.near else ""
        super().__init__(f"Config '{key}': {problem}{hint}")


class UnknownName(InputError):
    """A named thing (dataset, revision, run, model, config group choice …) that does not exist.

    `make` is how it is made, which is said where no name that is there looks like it.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "", make: str = "") -> None:
        self.kind = kind
        self.name = name
        self.known = list(known)
        near = nearest(name, self.known)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        there = listing(self.known)
        more = "".join(f" {text}" for text in (hint, "" if near else make) if text)
        super().__init__(f"There is no {kind} '{name}'; there is: {there}.{guess}{more}")


class MergeConflict(InputError):
    """Two branches that changed the same rows otherwise; `rows` has one entry for each, with both sides."""

    def __init__(self, ours: str, theirs: str, rows: list[dict[str, Any]], problem: str) -> None:
        self.ours = ours
        self.theirs = theirs
        self.rows = rows
        super().__init__(f"{theirs} cannot be merged into {ours}: {problem}")


class TargetError(InputError):
    """An importable name that cannot be imported."""

    def __init__(self, key: str, target: str, reason: str) -> None:
        self.key = key
        self.target = target
        self.reason = reason
        super().__init__(
            f"Config '{key}._target_' asks for '{target}', but {reason}. "
            "Check the spelling, and that the package is installed or lies in the folder you run from."
        )


class SourceError(InputError):
    """A file, line or row of the user's data that cannot be taken."""

    def __init__(self, path: Path | str, problem: str, line: int | None = None) -> None:
        self.path = str(path)
        self.line = line
        self.problem = problem
        where = self.path if line is None else f"{self.path}, line {line}"
        super().__init__(f"{where}: {problem}")


class OperationError(HpctoolError):
    """It was asked rightly and failed."""


class CorruptError(OperationError):
    """What is on disk is not what was written."""

    def __init__(self, path: Path | str, problem: str, touches: str = "") -> None:
        self.path = str(path)
        self.problem = problem
        self.touches = touches
        super().__init__(f"{self.path} is damaged: {problem}.{' ' + touches if touches else ''}")


class NewerFormat(OperationError):
    """Written by a newer hpctool than this one."""

    def __init__(self, path: Path | str, kind: str, found: int, known: int) -> None:
        self.path = str(path)
        self.kind = kind
        self.found = found
        self.known = known
        super().__init__(
            f"{self.path} is a {kind} of format {found}; this hpctool reads up to {known}. Update hpctool to read it."
        )


class ConflictError(OperationError):
    """Somebody else changed the same thing meanwhile."""

    def __init__(self, what: str, ours: str, theirs: str, hint: str = "Look at both and try again.") -> None:
        self.what = what
        self.ours = ours
        self.theirs = theirs
        super().__init__(f"{what} was changed by two at once: ours is {ours}, theirs is {theirs}. {hint}")


class FencedError(OperationError):
    """A newer attempt of this run has begun; this one (0: one that has not begun) may not write any more."""

    def __init__(self, run: str, attempt: int, newest: int) -> None:
        self.run = run
        self.attempt = attempt
        self.newest = newest
        who = f"Attempt {attempt} of run {run} may not commit" if attempt else f"This start of run {run} comes too late"
        super().__init__(f"{who}: attempt {newest} has begun{'' if attempt else ' by a later one'}. It ends here.")


class CancelledError(OperationError):
    """A job of a run that its user has cancelled has begun all the same."""

    def __init__(self, run: str, by: str) -> None:
        self.run = run
        self.by = by
        super().__init__(
            f"Run {run} was cancelled by {by}, so this job ends. hpctool runs retry {run} starts it again."
        )


class WorldError(OperationError):
    """Ranks that cannot find each other, or that do not agree."""


class DesyncError(OperationError):
    """Ranks that are no longer alike in what they train; `differing` has the values of all ranks by what differs."""

    def __init__(self, step: int, differing: dict[str, list[Any]], what: str, reasons: str) -> None:
        self.step = step
        self.differing = differing
        super().__init__(
            f"After step {step} the ranks are no longer alike: {what}. Training stops here, and the newest checkpoint "
            f"from before it stays. Likely: {reasons}."
        )


class HangError(OperationError):
    """Ranks that have not got any further for too long."""


class NodeError(OperationError):
    """Nodes that fail the check before a job begins; `nodes` says by name what is wrong with each."""

    def __init__(self, nodes: dict[str, str]) -> None:
        self.nodes = nodes
        text = listing((f"{node} ({problem})" for node, problem in nodes.items()), 4)
        super().__init__(
            f"{'A node fails' if len(nodes) == 1 else 'Nodes fail'} the start check: {text}. Try it elsewhere, or tell "
            "your site's support; cluster.start_check=false leaves the check out."
        )


class ProgramError(OperationError):
    """Somebody's own program ended with an error; `words` are the last that it said."""

    def __init__(self, program: str, how: str, words: str) -> None:
        self.program = program
        self.how = how
        self.words = words
        last = words.strip().splitlines()[-1:] or ["it said nothing"]
        super().__init__(f"{program} {how}: {last[0].strip()[:300]}")


class SubmitError(OperationError):
    """The scheduler refused a submission."""

    def __init__(self, script: Path | str, reason: str) -> None:
        self.script = str(script)
        self.reason = reason
        super().__init__(f"The submission was refused: {reason} The script is {self.script}.")


class SchedulerError(OperationError):
    """The scheduler cannot be asked, or does not answer."""

    def __init__(self, command: Iterable[str], reason: str) -> None:
        self.command = list(command)
        self.reason = reason
        super().__init__(
            f"Slurm could not be asked ({' '.join(self.command[:3])}: {reason}). Nothing of yours is lost by this; "
            "ask again later, or ask your site's support whether the controller is up."
        )


class ParityError(OperationError):
    """An exported model that does not answer like the original."""


class Stopped(HpctoolError):
    """Stopped on request; everything is saved and the run is to be continued."""

    exit_code = EXIT_CONTINUE

    def __init__(self, cause: str, step: int, saved: bool = False, note: str = "", sentence: str = "") -> None:
        self.cause = cause
        self.step = step
        #: work was saved that `step` does not count: somebody's own program says so
        self.saved = saved
        #: what the ledger says beside the cause: why nothing new was saved
        self.note = note
        why = f"{cause}; {note}" if note else cause
        super().__init__(sentence or f"Stopped at step {step} ({why}); it continues there when it is started again.")


def to_record(error: Exception) -> dict[str, Any]:
    """An error as JSON for another rank: OSError with its errno, our own errors with their fields, others as text."""
    if isinstance(error, OSError) and error.errno is not None:
        path = None if error.filename is None else str(error.filename)
        return {"errno": error.errno, "text": error.strerror, "path": path}
    if isinstance(error, HpctoolError):
        return {"class": type(error).__name__, "text": str(error), "fields": vars(error)}
    return {"text": f"{type(error).__name__}: {error}"}


def from_record(record: dict[str, Any], rank: int) -> Exception:
    """The error that `to_record` described on rank `rank`; an OperationError where it is neither OSError nor ours."""
    if "errno" in record:
        return OSError(record["errno"], record["text"], record["path"])
    kind = globals().get(record.get("class", ""))
    if kind is None:
        return OperationError(f"Rank {rank} failed: {record['text']}")
    return _revived(kind, record["text"], record["fields"])


def _revived(kind: type[HpctoolError], text: str, fields: dict[str, Any]) -> HpctoolError:
    error = kind.__new__(kind, text)
    vars(error).update(fields)
    return error
