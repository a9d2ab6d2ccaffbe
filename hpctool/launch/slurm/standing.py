"""How a run stands on Slurm: its own ledger first, then the queue, accounting last.

    the ledger says   and the queue says            so it is
    queued            waits                         queued, with the reason
                      nothing, or that it is over   failed or cancelled: it ended before our Python began
    running           waits                         requeued: an administrator, or a lost node
                      suspended                     running, said to be suspended
                      nothing, or that it is over   failed or cancelled: nobody could write it down
    stopping          nothing, or that it is over   cancelled
    requeued          nothing, or that it is over   cancelled meanwhile

While Slurm does not answer, the ledger's word stands.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Sequence
from pathlib import Path

from hpctool.errors import HpctoolError
from hpctool.launch.slurm import accounting, reasons, states
from hpctool.launch.slurm.queue import QUEUE, Answer, Job, Queue, cluster_name
from hpctool.rundir import UNDERWAY, RunDir, Story

#: The cause of a run whose job holds its nodes, stopped.
SUSPENDED = "suspended by Slurm"

#: By so much the clocks of nodes and login hosts may differ where all depends on it.
_SKEW_S = 60.0


def correct(rundirs: Sequence[RunDir], stories: list[Story], queue: Queue | None = None) -> None:
    """Bring stories up to what Slurm says. One squeue at most, and one sacct for all that are gone from it."""
    there = [index for index, story in enumerate(stories) if is_open(story)]
    if not there:
        return
    answer = (queue or QUEUE).answer()
    if not answer.asked_s:
        return
    there = [index for index in there if not is_elsewhere(cluster_of(stories[index]))]
    gone = [i for i in there if not _take(stories[i], answer) and os.path.exists(rundirs[i].path)]
    # It may have written down its end between our reading its ledger and Slurm's answer.
    again = {index: rundirs[index].story() for index in gone if _is_mine(rundirs[index].path)}
    for index, story in again.items():
        if story.last != stories[index].last:
            stories[index] = story
    lost = {index: stories[index] for index in again if stories[index] is not again[index]}
    if lost:
        ends, has_accounting = accounting.ends(story.slurm_job_id for story in lost.values())
        for index, story in lost.items():
            job = answer.jobs.get(story.slurm_job_id)
            end = ends.get(story.slurm_job_id) or (accounting.Ended(job.state) if job else None)
            _close(story, rundirs[index], end, has_accounting)


def is_open(story: Story) -> bool:
    """Whether Slurm may know more of a run than its ledger."""
    if story.where == "inline":
        # Typed within a job, which nobody submitted for it: of its process only that job can tell from another host.
        return story.state in ("running", "stopping") and bool(story.slurm_job_id)
    if story.where != "slurm" or story.state not in UNDERWAY or not story.slurm_job_id:
        return False
    # What waits for any of a sweep's jobs has no number yet, or still that of its last attempt.
    return story.state != "queued" or bool(story.of_kind("submitted")[-1].get("slurm_job_id"))


def is_elsewhere(cluster: str) -> bool:
    """Whether a job was taken by another cluster than the one that is asked here: two may share a file system."""
    return bool(cluster) and cluster_name() not in ("", cluster)


def cluster_of(story: Story) -> str:
    """The cluster that the newest job of a run was taken by, as far as its ledger says."""
    named = (entry.body for entry in reversed(story.entries) if entry.body["kind"] in ("submitted", "begun"))
    return str(next(named, {}).get("cluster", ""))


def _take(story: Story, answer: Answer) -> bool:
    """Take what the queue says into a story; False where the job has left the queue."""
    job = answer.jobs.get(story.slurm_job_id)
    if not answer.is_after(last_time_s(story)):
        if job is not None and job.waits and story.state == "queued":
            story.cause = waiting(job)
        return True
    if job is None and not answer.is_after(_submitted_s(story), _SKEW_S):
        # Slurm may have been asked before it was submitted: a job that is not known yet is no job that is gone.
        return True
    if job is None or job.is_over:
        return False
    if story.state in ("running", "stopping"):
        _take_running(story, job)
    elif job.waits:
        story.cause = "; ".join(filter(None, (story.cause, waiting(job, requeued=story.state == "requeued"))))
    elif story.state == "queued":
        story.cause = f"starting on {job.nodes}" if job.nodes else "starting"
    return True


def _take_running(story: Story, job: Job) -> None:
    began_again = job.start_s is not None and job.start_s > _began_s(story)
    if job.waits or (began_again and states.word(job.state) == "running"):
        how = waiting(job, requeued=True) if job.waits else f"starting on {job.nodes}"
        story.state, story.cause = "requeued", f"requeued by Slurm; {how}"
    elif states.base(job.state) == "SUSPENDED":
        story.cause = story.cause or SUSPENDED
    elif states.base(job.state) not in states.STATES:
        story.cause = story.cause or f"Slurm says {job.state}"


def waiting(job: Job, requeued: bool = False) -> str:
    """Why a job waits and when it is expected to begin, in words."""
    if requeued and job.reason == "BeginTime":
        words = "Slurm holds a requeued job back for two minutes"
    else:
        words = reasons.sentence(job.reason) or states.word(job.state)
    if job.start_s is None or job.start_s < time.time():
        return words
    return f"{words}; expected {clock_text(job.start_s)}"


def clock_text(time_s: float) -> str:
    """`at 14:05` today, `on 2026-11-24 at 14:05` on another day, in local time."""
    when = datetime.datetime.fromtimestamp(time_s)
    today = when.date() == datetime.datetime.now().date()
    return f"at {when:%H:%M}" if today else f"on {when:%Y-%m-%d at %H:%M}"


def _close(story: Story, rundir: RunDir, end: accounting.Ended | None, has_accounting: bool) -> None:
    """Give a story whose job is gone the end that nobody wrote down."""
    before, what = story.state, story.cause
    if end is not None:
        story.state, story.cause = end.word, end.cause
        if end.word == "failed" and before == "requeued":
            story.cause = f"{what}; not started again: {end.cause}"
    elif before == "requeued":
        story.state, story.cause = "cancelled", f"{what}; then it left Slurm's queue: cancelled there"
    else:
        why = "accounting does not know it" if has_accounting else "there is no accounting here"
        log = _log(story, rundir)
        where = f"; see {log}" if log else ""
        began = "before it began" if before == "queued" else "without a word"
        story.state, story.cause = "failed", f"Slurm ended it {began}, and {why}{where}"
    if before == "stopping":
        story.state, story.cause = "cancelled", what
    elif before == "queued" and (after := rundir.record().get("after")):
        from hpctool.launch import chain  # which asks how its parent stands

        if why := chain.Parents(rundir.path.parent).why_not(after):
            story.state, story.cause = "cancelled", why


def _log(story: Story, rundir: RunDir) -> str:
    """The log that may say more, relative to the run folder; empty if there is none."""
    found = [rundir.log(0, story.attempt)] if story.attempt and story.state != "queued" else []
    found += batch_logs(rundir, story.slurm_job_id)
    return next((os.path.relpath(path, rundir.path) for path in found if path.exists()), "")


def batch_logs(rundir: RunDir, slurm_job_id: str, sweep: str = "") -> list[Path]:
    """What the batch script of a job, and its ranks before our Python began, have said; the script's comes first.

    `sweep` is that of a cell which has no folder to say so.
    """
    folders = [rundir.path / "logs"]
    with contextlib.suppress(HpctoolError, OSError):
        if sweep := sweep or rundir.record().get("sweep") or "":
            folders.append(rundir.path.parent / "sweeps" / sweep / "submissions" / "logs")
    return [path for folder in folders for path in sorted(folder.glob(f"{slurm_job_id}_*_log.out"))]


def last_time_s(story: Story) -> float:
    """When the newest entry of a ledger that says the time was written."""
    times = (entry.body["time"] for entry in reversed(story.entries) if entry.body.get("time"))
    return parse_time_s(next(times, None))


def _began_s(story: Story) -> float:
    """When the newest attempt's job began, at the latest: by Slurm's clock to the second, else by the node's."""
    begun = (story.of_kind("begun") or [{}])[-1]
    by_slurm = float(begun.get("slurm_start_s") or 0)
    return by_slurm + 1.0 if by_slurm else parse_time_s(begun.get("time")) + _SKEW_S


def _submitted_s(story: Story) -> float:
    return parse_time_s((story.of_kind("submitted") or [{}])[-1].get("time"))


def parse_time_s(text: str | None) -> float:
    """A time of ours in seconds of time.time(); 0 if there is none."""
    return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0


def _is_mine(path: Path) -> bool:
    # squeue is asked for one's own jobs: it says nothing of a run that somebody else has submitted.
    return path.stat().st_uid == os.getuid()
