"""How jobs ended that squeue does not know any more: sacct, asked last, where a site has accounting at all.

/tmp/hpctool-<uid>/sacct-<key>.json remembers what it said, since an end does not change, and that there is none.
"""

from __future__ import annotations

import contextlib
import pwd
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import CorruptError, OperationError, SchedulerError
from hpctool.launch.private import private_folder
from hpctool.launch.slurm import ask, states
from hpctool.launch.slurm.queue import cache_key, cell_ids

CACHE_FORMAT = 1
#: A job that accounting does not know yet is asked for again after so long; the database may lag behind.
AGAIN_S = 60.0
#: Where there is no accounting nobody asks again for so long; where it only does not answer, for so long.
NONE_S = 3_600.0
DOWN_S = 300.0
TIMEOUT_S = 30.0
_MOST_KEPT = 5_000
#: what slurmd makes of it when it cannot open the file that is to hold a script's output
_NO_LOG = "0:53"


@dataclass(frozen=True)
class Ended:
    """How Slurm says that a job ended: its own state, in words of ours, and the exit code as sacct prints it."""

    state: str
    by: str = ""
    exit_code: str = ""

    @property
    def word(self) -> str:
        """failed or cancelled; what Slurm calls completed did not say so itself, else nobody would ask here."""
        return "cancelled" if states.word(self.state) == "cancelled" else "failed"

    @property
    def cause(self) -> str:
        """Why, in words."""
        if self.word == "cancelled":
            return f"cancelled in Slurm{f' by {self.by}' if self.by else ''}"
        if words := states.CAUSES.get(self.state):
            return words
        if self.state == "COMPLETED":
            return "Slurm calls it completed, but it did not write down its end"
        if self.state == "FAILED":
            return self._failed()
        return f"Slurm says {self.state}"

    def _failed(self) -> str:
        code, _, by_signal = self.exit_code.partition(":")
        if self.exit_code == _NO_LOG:
            return (
                "the node that was to begin it could not open its log: there the run's folder is missing, or takes no "
                "files; cluster.exclude leaves a node out"
            )
        if code == "0" and by_signal not in ("", "0"):
            return f"signal {by_signal} ended it before it could say why"
        return f"it ended with {f'exit code {code}' if code else 'an error'} before it could say why"


def ends(job_ids: Iterable[str]) -> tuple[dict[str, Ended], bool]:
    """How these jobs ended, as far as accounting knows, and whether it answers: one call for all. Never raises."""
    wanted = set(job_ids)
    try:
        cache = private_folder() / f"sacct-{cache_key()}.json"
    except (OperationError, OSError):
        return {}, False
    kept = _read(cache)
    missing = {
        job_id for job_id in wanted - kept["ends"].keys() if time.time() - kept["asked"].get(job_id, 0) > AGAIN_S
    }
    if missing and time.time() > kept["none_until_s"]:
        _ask(kept, missing)
        with contextlib.suppress(OSError):
            files.write_json(cache, kept, mode=0o600)
    found = {job_id: Ended(*kept["ends"][job_id]) for job_id in wanted & kept["ends"].keys()}
    return found, time.time() > kept["none_until_s"]


def _read(cache: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, CorruptError):
        kept: Any = files.read_json(cache)
        if isinstance(kept, dict) and kept.get("format") == CACHE_FORMAT:
            return kept
    return {"format": CACHE_FORMAT, "none_until_s": 0.0, "asked": {}, "ends": {}}


def _ask(kept: dict[str, Any], missing: set[str]) -> None:
    """Add to `kept` what sacct says of these jobs. An array is asked for as a whole: its cells may be thousands."""
    numbers = sorted({job_id.partition("_")[0] for job_id in missing})
    try:
        text = ask.call(
            *("sacct", "--noheader", "--parsable2", "--format=JobID,State,ExitCode", f"--jobs={','.join(numbers)}"),
            timeout_s=TIMEOUT_S,
        )
    except SchedulerError as error:
        switched_off = "disabled" in error.reason or not ask.have("sacct")
        kept["none_until_s"] = time.time() + (NONE_S if switched_off else DOWN_S)
        return
    found = parse(text)
    kept["ends"] |= {job_id: list(vars(ended).values()) for job_id, ended in found.items() if job_id in missing}
    kept["asked"] |= dict.fromkeys(missing - found.keys(), time.time())
    for part in ("ends", "asked"):
        kept[part] = dict(list(kept[part].items())[-_MOST_KEPT:])


def parse(text: str) -> dict[str, Ended]:
    """The jobs that are over among the lines of sacct; a step that ran out of memory tells it of its job."""
    found: dict[str, Ended] = {}
    out_of_memory = set()
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) != 3:
            continue
        name, state, exit_code = parts
        job_id, _, step = name.partition(".")
        if step and states.base(state) == "OUT_OF_MEMORY":
            out_of_memory.add(job_id)
        elif not step and states.is_over(state):
            found |= dict.fromkeys(cell_ids(job_id), Ended(states.base(state), _by(state), exit_code))
    for job_id in out_of_memory & found.keys():
        found[job_id] = Ended("OUT_OF_MEMORY", "", found[job_id].exit_code)
    return found


def _by(state: str) -> str:
    """The user of `CANCELLED by 1000`."""
    _, mark, uid = state.partition(" by ")
    if not mark or not uid.isdigit():
        return ""
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except KeyError:
        return f"user {uid}"
