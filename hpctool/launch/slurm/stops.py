"""How this cluster stops jobs, and whether the time that it gives is enough to save: the first part of the doctor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpctool.errors import HpctoolError
from hpctool.launch.slurm import ask
from hpctool.launch.slurm.check import time_text
from hpctool.launch.slurm.findings import Finding
from hpctool.launch.slurm.inside import EARLY_S
from hpctool.launch.slurm.site import Site, seconds
from hpctool.rundir import RunDir, list_run_ids

#: So many of the newest runs tell how long a save takes.
RECENT_RUNS = 20
#: A step must end before a save can begin, and a busy file system may take longer than last time.
MARGIN = 2.0

_USER_SIGNAL = "preempt_send_user_signal"


@dataclass
class Measured:
    """What recent runs tell: how long their saves took, and how their preemptions went."""

    saves_s: list[float] = field(default_factory=list)
    num_preempted: int = 0
    num_unsaved: int = 0

    @property
    def longest_s(self) -> float:
        """The longest save in seconds; 0 if there was none."""
        return max(self.saves_s, default=0.0)


@dataclass(frozen=True)
class Preemption:
    """Whose jobs may be preempted, for whom, and how."""

    whose: str
    by: str
    mode: str
    grace_s: int


def measure(runs: Path) -> Measured:
    """Read the ledgers of the newest runs. What cannot be read is left out."""
    found = Measured()
    for name in sorted(list_run_ids(runs), key=lambda name: -_changed_s(runs / name))[:RECENT_RUNS]:
        with contextlib.suppress(HpctoolError, OSError):
            story = RunDir(runs / name).story()
            found.saves_s += [body["save_s"] for body in story.of_kind("checkpoint") if body.get("save_s") is not None]
            # Without a grace time Slurm has requeued a job by the time that it asks why it is stopped.
            ends = [body["cause"] for body in story.of_kind("ended") if body.get("cause")]
            ends = [cause for cause in ends if cause.startswith(("preempted", "requeued"))]
            found.num_preempted += len(ends)
            found.num_unsaved += sum("no time to save" in cause for cause in ends)
    return found


def preemptions(site: Site) -> list[Preemption]:
    """Whose jobs may be preempted, by partition or by QOS as the site does it. Raises SchedulerError."""
    kind, usual = site.config.get("PreemptType", "preempt/none"), site.config.get("PreemptMode", "OFF")
    found = []
    if kind == "preempt/partition_prio":
        for one in site.partitions.values():
            above = [p.name for p in site.partitions.values() if p.priority_tier > one.priority_tier]
            if above:
                by = f"jobs of partition {' or '.join(above)}"
                found.append(Preemption(f"partition {one.name}", by, one.preempt_mode, one.grace_s))
    elif kind == "preempt/qos":
        for qos in site.qos.values():
            above = [other.name for other in site.qos.values() if qos.name in other.preempts]
            mode = usual if qos.preempt_mode in ("cluster", "") else qos.preempt_mode
            if above:
                by = f"jobs of QOS {' or '.join(above)}"
                found.append(Preemption(f"QOS {qos.name}", by, mode.upper(), qos.grace_s))
    return [one for one in found if one.mode != "OFF"]


def sends_user_signal(site: Site) -> bool:
    """Whether a job is told of its preemption by the signal that it asked for, instead of SIGTERM."""
    older = _words(site, "SlurmctldParameters")
    return _USER_SIGNAL in older or "send_user_signal" in _words(site, "PreemptParameters")


def findings(site: Site, signal_delay_s: int, measured: Measured) -> Iterator[Finding]:
    """When a job is told to stop, how long it then has, and what brings it back. Raises SchedulerError."""
    yield _time_limit(signal_delay_s, measured)
    found = preemptions(site)
    for one in found:
        yield _preemption(site, one, measured)
    if not found:
        yield Finding("OK", "Nobody's job is stopped to make room for another one: there is no preemption here.")
    elif not sends_user_signal(site):
        yield Finding(
            "NOTE",
            "That SIGTERM tells of preemption matters for other programs only: hpctool listens to it, but programs "
            "that wait for SIGUSR1 or SIGUSR2 (submitit's, Lightning's) hear nothing, and lose what they have done "
            "since their last checkpoint.",
        )
    if measured.num_preempted:
        yield _experience(measured)
    yield from _settings(site, measured)
    yield _requeue(site)


def _time_limit(delay_s: int, measured: Measured) -> Finding:
    text = (
        f"Time limit: {delay_s} s before it comes (or up to {EARLY_S:.0f} s earlier) Slurm tells the job, by the "
        "signal SIGUSR2. The job saves, goes back into the queue and continues there."
    )
    if measured.longest_s * MARGIN > delay_s:
        needed_s = int(measured.longest_s * MARGIN) + 30
        return Finding("CHANGE", f"{text} {_saves(measured)}", f"Give it more time: cluster.signal_delay_s={needed_s}.")
    return Finding("OK", f"{text} {_saves(measured)}".strip())


def _saves(measured: Measured) -> str:
    if not measured.saves_s:
        return ""
    return f"The longest of your last {len(measured.saves_s)} saves took {max(0.1, measured.longest_s):.1f} s."


def _preemption(site: Site, one: Preemption, measured: Measured) -> Finding:
    kill_s = ask.kill_wait_s(site.config)
    room_s = one.grace_s + kill_s
    if "SUSPEND" in one.mode:
        return Finding(
            "OK",
            f"Preemption in {one.whose}: a job is frozen while {one.by} have its nodes, and then goes on where it was. "
            "Nothing is lost; it only takes longer.",
        )
    signal = "SIGUSR2" if sends_user_signal(site) else "SIGTERM"
    grace = f"{one.grace_s} s of GraceTime and {kill_s} s of KillWait" if one.grace_s else "KillWait; no GraceTime"
    back = {
        "REQUEUE": "Slurm puts it back into the queue, and it continues there.",
        "CANCEL": "Slurm would end it for good (PreemptMode=CANCEL); hpctool puts it back into the queue by itself.",
    }.get(one.mode, f"What becomes of it then is said by PreemptMode={one.mode}.")
    text = (
        f"Preemption in {one.whose}: a job may be stopped so that {one.by} can have its nodes. It is told by the "
        f"signal {signal}, and killed {room_s} s later ({grace}). {back}"
    )
    if not measured.saves_s:
        return Finding("NOTE", text, "How long your saves take is not known yet: ask again after the first run.")
    if measured.longest_s * MARGIN <= room_s:
        return Finding("OK", f"{text} {_saves(measured)} That fits.")
    return Finding(
        "CHANGE",
        f"{text} {_saves(measured)} With the step that has to end first, that may be too long; then the run goes back "
        "to the checkpoint before.",
        "Save more often, so that little is lost (loop.checkpoint_every_min=2), or ask your site for a GraceTime of "
        f"{int(measured.longest_s * MARGIN) + 10} s.",
    )


def _experience(measured: Measured) -> Finding:
    saved = measured.num_preempted - measured.num_unsaved
    text = f"Of the {measured.num_preempted} preemptions of your newest runs, {saved} left time to save."
    if not measured.num_unsaved:
        return Finding("OK", text)
    return Finding("CHANGE", text, "Save more often, so that less is done twice: loop.checkpoint_every_min=2.")


def _settings(site: Site, measured: Measured) -> Iterator[Finding]:
    """Settings that are easily got wrong, and those that explain what people wonder about."""
    if _USER_SIGNAL in _words(site, "SchedulerParameters"):
        yield Finding(
            "CHANGE",
            f"Your site has written {_USER_SIGNAL} into SchedulerParameters, where it does nothing.",
            "Tell your site: it belongs into SlurmctldParameters or, in newer versions of Slurm, as send_user_signal "
            "into PreemptParameters.",
        )
    exempt_s = seconds(site.config.get("PreemptExemptTime", ""))
    if exempt_s:
        yield Finding("NOTE", f"For the first {time_text(exempt_s)} of a job nobody may preempt it.")
    kill_s = ask.kill_wait_s(site.config)
    cancelled = f"Cancelled by hand (hpctool runs cancel, scancel), a job has {kill_s} s to save, and stays cancelled."
    if measured.longest_s * MARGIN > kill_s:
        yield Finding("NOTE", f"{cancelled} {_saves(measured)} So a last save may not be finished.")
    else:
        yield Finding("OK", cancelled)
    timeout = site.config.get("SlurmdTimeout", "300 sec").split(" ")[0]
    yield Finding(
        "OK",
        f"A node that dies or is cut off is noticed after {timeout} s (SlurmdTimeout). Its job goes back into the "
        "queue and continues from its newest checkpoint on other nodes.",
    )


def _requeue(site: Site) -> Finding:
    wait = "A job that goes back into the queue waits about two minutes before it may start; that is Slurm's own rule."
    if site.config.get("JobRequeue", "1") == "0":
        return Finding(
            "NOTE",
            "Jobs do not come back by themselves here (JobRequeue=0). hpctool's do: their scripts say --requeue. "
            f"{wait}",
            "Scripts of your own need the line #SBATCH --requeue.",
        )
    return Finding("OK", wait)


def _words(site: Site, key: str) -> set[str]:
    return {word.strip().lower() for word in site.config.get(key, "").split(",")}


def _changed_s(run: Path) -> float:
    try:
        return os.stat(run / "ledger").st_mtime
    except OSError:
        return 0.0
