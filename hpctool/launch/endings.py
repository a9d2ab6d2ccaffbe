"""What the end of an attempt means for its run: over, or once more. The local supervisor decides and writes it down.

A failure that may be tried again is marked `failure` in the ledger; by these entries failures are counted.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from hpctool import config
from hpctool.errors import EXIT_CONTINUE, EXIT_FAILED, EXIT_INPUT, Stopped
from hpctool.launch import alert, output, signals
from hpctool.launch.job import job_names, load_job
from hpctool.launch.ranks import Outcome, starting_log
from hpctool.launch.result import first_error, is_alive, is_replaced, rank_errors, write_ended
from hpctool.rundir import OVER, RunDir, Story, now

# With what a rank is stopped here; any other signal comes from somewhere else.
_OURS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a run after an attempt: its state (`requeued`: once more) and why."""

    state: str
    cause: str = ""
    #: whether the run's ledger already says so, in the task's own words
    recorded: bool = False
    #: whether it counts as a failure that was tried again
    failure: bool = False


def judge(rundir: RunDir, before: Story, outcome: Outcome, max_failures: int, cancelled_by: str = "") -> Verdict:
    """Decide what the end of an attempt means. `before` is the run's story when the attempt was started."""
    story = rundir.story()
    attempt = _attempt(story, before)
    said = _task_said(story, before, attempt)
    if said.get("state") == "completed":
        return Verdict("completed", recorded=True)
    if cancelled_by:
        return Verdict("cancelled", f"cancelled by {cancelled_by}", recorded=story.state == "cancelled")
    if outcome.first_rank is None:
        return Verdict("failed", "all ranks ended with exit code 0, but the task did not record the end of the run")
    code, told = outcome.first_code, outcome.told
    if (
        EXIT_CONTINUE in outcome.codes
        and attempt > before.attempt
        and outcome.first_rank in _left_alone(rundir, attempt)
    ):
        code = EXIT_CONTINUE  # it stopped because of the one that stopped, seen in the same moment
    # What rank 0 has written holds, though its process may have been killed while it was leaving.
    stopped = code == EXIT_CONTINUE or said.get("state") == "requeued"
    if stopped and (told != "timeout" or _got_further(rundir, story, before, said)):
        cause = str(said.get("cause", "")) or told or "stopped"
        return Verdict("requeued", cause, recorded=said.get("state") == "requeued")
    if told == "shutdown" and -code in _OURS:
        return Verdict("requeued", "the local supervisor was told to stop")
    if told == "timeout" and (stopped or -code in _OURS):
        what = "without progress" if stopped else "before the run had saved and stopped"
        return after_failure(story, f"the time limit came {what}", max_failures)
    if code < 0:
        cause = f"rank {outcome.first_rank} was killed by {signals.name_of(-code)}"
        return after_failure(story, cause, max_failures)
    # Of a hang the first rank that stands still tells, whichever ends first.
    own = said.get("state") == "failed" and (outcome.first_rank == 0 or bool(said.get("failure")))
    return Verdict("failed", _why(rundir, outcome, attempt, before), recorded=own)


def record(rundir: RunDir, before: Story, outcome: Outcome, verdict: Verdict) -> None:
    """Write a verdict into the run's ledger, and result.json where the run is over. Raises OSError."""
    story = rundir.story()
    attempt = _attempt(story, before)
    if verdict.state == "cancelled" or (verdict.state == "failed" and not verdict.recorded):
        write_ended(rundir, verdict.state, verdict.cause, attempt=attempt)
    if not verdict.recorded:
        more = {"exit_code": outcome.first_code, "rank": outcome.first_rank, "failure": verdict.failure}
        _end(rundir, story, attempt, verdict, more)


def record_lost(rundir: RunDir) -> None:
    """Close an attempt whose processes on this host went with their supervisor, so that the ledger tells it."""
    story = rundir.story()
    begun = story.of_kind("begun")
    if story.state not in ("running", "stopping") or not begun or is_alive(begun[-1]):
        return
    if story.state == "running":
        _end(rundir, story, story.attempt, Verdict("requeued", "its supervisor was gone"), {"exit_code": None})
    else:
        record_gone(rundir)


def record_gone(rundir: RunDir) -> None:
    """Close an attempt that was cancelled, and whose host gives no sign of life any more."""
    story = rundir.story()
    _end(rundir, story, story.attempt, Verdict("cancelled", story.cause), {"exit_code": None})
    write_ended(rundir, "cancelled", story.cause)


def record_unstartable(rundir: RunDir, cause: str) -> None:
    """Write down that no process of the run could be started here, which trying again would not change."""
    story = rundir.story()
    _end(rundir, story, story.attempt, Verdict("failed", cause), {"exit_code": None})
    write_ended(rundir, "failed", cause)


def record_cancel(rundir: RunDir, by: str) -> bool:
    """Write down that a run's user cancels it; False if it is over anyway."""
    story = rundir.story()
    if story.state in OVER:
        return False
    if story.state != "stopping":
        rundir.ledger.append({"kind": "cancel", "by": by, "time": now()})
    if story.state in ("queued", "requeued"):
        write_ended(rundir, "cancelled", f"cancelled by {by}")
    return True


def _end(rundir: RunDir, story: Story, attempt: int, verdict: Verdict, more: dict[str, Any]) -> None:
    body = {"kind": "ended", "attempt": attempt, "state": verdict.state, "cause": verdict.cause}
    rundir.ledger.append({**body, "step": committed_step(story), "time": now(), **more})
    if not is_replaced(rundir, attempt):
        alert.tell(rundir, verdict.state, verdict.cause)


def recorded_end(rundir: RunDir, before: Story) -> dict[str, Any]:
    """The end of the attempt that followed `before`, as its rank 0 wrote it down; empty if it could not."""
    story = rundir.story()
    return _task_said(story, before, _attempt(story, before))


def was_replaced(rundir: RunDir, before: Story) -> bool:
    """Whether a newer attempt than the one that followed `before` has begun."""
    return is_replaced(rundir, _attempt(rundir.story(), before))


def _attempt(story: Story, before: Story) -> int:
    """The number under which the attempt that followed `before` has begun; the one before it if it never began."""
    begun = [e.body["attempt"] for e in story.entries if e.number > before.last and e.body["kind"] == "begun"]
    return int(begun[0]) if begun else before.attempt


def _task_said(story: Story, before: Story, attempt: int) -> dict[str, Any]:
    """The end of this attempt as its rank 0 wrote it down; empty if it could not."""
    for entry in reversed(story.entries):
        if entry.number > before.last and entry.body["kind"] == "ended" and entry.body["attempt"] == attempt:
            return entry.body
    return {}


def judge_unfit(rundir: RunDir, attempt: int, nodes: dict[str, str]) -> Verdict:
    """Write down the nodes that cannot do an attempt's work, with why, and decide: once more, or over."""
    story = rundir.story()
    text = "; ".join(f"{node}: {problem}" for node, problem in nodes.items())
    max_failures = int(config.load(rundir.config_yaml).cluster.max_failures)
    verdict = after_failure(story, f"start check: {text}", max_failures)
    rundir.ledger.append({"kind": "unfit", "attempt": attempt, "nodes": nodes, "time": now()})
    return verdict


def unfit_nodes(story: Story) -> list[str]:
    """The nodes that have failed a start check of this run, which it shall not run on again."""
    return sorted({node for body in story.of_kind("unfit") for node in body["nodes"]})


def left_out(rundir: RunDir) -> list[str]:
    """What Slurm is to be told of nodes that this run shall not come to: those of its config, and the unfit ones."""
    excluded = config.load(rundir.config_yaml).cluster.get("exclude")
    return [*([str(excluded)] if excluded else []), *unfit_nodes(rundir.story())]


def committed_step(story: Story) -> int:
    """The step that the next attempt would continue from; a job that works off other runs says it in `progress`."""
    done = [*story.checkpoints, *story.of_kind("progress")]
    return max((int(body["step"]) for body in done), default=0)


def _left_alone(rundir: RunDir, attempt: int) -> list[int]:
    """The ranks of an attempt that only lost their peers."""
    return [error["rank"] for error in rank_errors(rundir, attempt) if error["type"] == "WorldError"]


def _got_further(rundir: RunDir, story: Story, before: Story, said: dict[str, Any]) -> bool:
    """Whether an attempt that its time limit ended has saved anything new; a service has nothing to save."""
    if committed_step(story) > committed_step(before) or int(said.get("step", 0)) > before.step or said.get("saved"):
        return True
    return _is_service(rundir)


def too_many_timeouts(rundir: RunDir, stop: Stopped) -> str:
    """Why a run that its time limit stops is given up; empty if it may come back.

    Counted since it was submitted: `cluster.max_timeouts` may pass, and not two in a row without a step between them,
    unless the job says itself that it has saved something.
    """
    # Runs of earlier versions have no such key.
    max_timeouts = int(config.load(rundir.config_yaml).cluster.get("max_timeouts", 100))
    story = rundir.story()
    ended = [body for body in _since_submitted(story, "ended") if body["state"] == "requeued"]
    timeouts = [body for body in ended if body["cause"].startswith("timeout")]
    if len(timeouts) >= max_timeouts:
        return (
            f"the time limit came {len(timeouts) + 1} times, and cluster.max_timeouts={max_timeouts} may be requeued; "
            f"everything up to step {stop.step} is saved"
        )
    in_vain = ended and ended[-1] in timeouts and stop.step <= ended[-1]["step"] and not stop.saved
    if in_vain and not _is_service(rundir):
        return f"the time limit came twice at step {stop.step}, without progress between; ask for more resources.time"
    return ""


def _since_submitted(story: Story, kind: str) -> list[dict[str, Any]]:
    submitted = max((e.number for e in story.entries if e.body["kind"] == "submitted"), default=0)
    return [e.body for e in story.entries if e.number > submitted and e.body["kind"] == kind]


def _is_service(rundir: RunDir) -> bool:
    job = rundir.record()["job"]
    return job in job_names() and bool(getattr(load_job(job), "SERVICE", False))


def after_failure(story: Story, cause: str, max_failures: int) -> Verdict:
    """Once more, unless the run fails without getting any further. `cause` is compared with that of the last time."""
    step = committed_step(story)
    earlier = [body for body in _since_submitted(story, "ended") if body.get("failure", False)]
    in_vain = [body for body in earlier if body["step"] >= step]
    if in_vain and in_vain[-1]["cause"] == cause:
        return Verdict("failed", f"{cause}; the same happened before at step {step}, without progress between")
    if len(in_vain) + 1 > max_failures:
        return Verdict("failed", f"{cause}; that is failure {len(in_vain) + 1} without progress beyond step {step}")
    return Verdict("requeued", cause, failure=True)


def _why(rundir: RunDir, outcome: Outcome, attempt: int, before: Story) -> str:
    """What a rank that ended by itself with an error has left: its error, or the last words in its log."""
    if attempt > before.attempt:
        if error := first_error(rundir, attempt):
            return error
        log = rundir.log(outcome.first_rank or 0, attempt)
    else:
        log = starting_log(rundir, outcome.first_rank or 0)
    words = {EXIT_FAILED: "failed", EXIT_INPUT: "found its input wrong"}
    what = words.get(outcome.first_code, f"ended with exit code {outcome.first_code}")
    said = output.last_lines(log)[:300] or "it said nothing"
    return f"rank {outcome.first_rank} {what}: {said} ({log.relative_to(rundir.path)})"
