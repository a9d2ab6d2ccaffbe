"""After srun, in the batch script: what the end of an attempt means when no rank could say it itself.

python -m hpctool.launch.slurm.settle --code 137 --said <srun's words> <run folder>

Exit code 75: the script is to ask for a requeue. Otherwise the job's own exit code: 0, 1 or 2.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from pathlib import Path

from hpctool import config
from hpctool.errors import EXIT_CONTINUE, EXIT_DONE, EXIT_FAILED, EXIT_INPUT, Stopped
from hpctool.launch import endings, starts
from hpctool.launch.endings import Verdict
from hpctool.launch.ranks import Outcome
from hpctool.launch.slurm import inside, nostart
from hpctool.launch.slurm.body import ATTEMPT
from hpctool.launch.task import open_run
from hpctool.rundir import RunDir, Story, fold

#: `srun: error: n2: task 1: Killed`, `… tasks 0,2: Exited with exit code 1`
_TASK_ENDED = re.compile(r"error: \S+: tasks? ([0-9]+)[0-9,-]*: (.+)")
#: without the number of the task that srun sets before a line of its output
_OUT_OF_MEMORY = re.compile(
    r"^(?:\s*\d+: )?(.*(?:oom[_-]kill|error: .*out of memory|exceeded (?:step |job )?memory limit).*)$", re.I | re.M
)
_NODE_LOST = re.compile(r"node failure|node_fail|communication connection failure|job .* failed nodes", re.I)


def main(arguments: list[str]) -> int:
    """Judge, write down, and say what is next."""
    parser = argparse.ArgumentParser(prog="hpctool.launch.slurm.settle")
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("--said", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("run", nargs="*")
    parser.add_argument("--array", action="store_true")
    options = parser.parse_args(arguments)
    rundir = open_run((["--array"] if options.array else []) + options.run)
    said, log = (path.read_text(errors="replace") if path.exists() else "" for path in (options.said, options.log))
    return settle(rundir, options.code, said, log.rpartition(ATTEMPT)[2])


def settle(rundir: RunDir, code: int, said: str, log: str = "") -> int:
    """The exit code for the script; the ledger then tells how it ended.

    `code` is srun's, `said` its words, `log` what the job has printed since the attempt began.
    """
    before, mine = _before(rundir), starts.own(rundir.id, "slurm")
    if starts.cancelled_by(before.entries, mine):
        # Its ranks have not begun, and have said why.
        return EXIT_FAILED
    if endings.was_replaced(rundir, before) or starts.later(before.entries, mine):
        # A node that was cut off and is back: to ask for a requeue would end the attempt that took its place.
        print("hpctool: a newer attempt of this run has begun; this one ends.", file=sys.stderr, flush=True)
        return EXIT_FAILED
    recorded = endings.recorded_end(rundir, before)
    if recorded:
        return int(recorded["exit_code"] or EXIT_DONE) if recorded["state"] != "requeued" else EXIT_CONTINUE
    outcome = _outcome(code, said)
    if _NODE_LOST.search(said):
        print("hpctool: a node seems lost; Slurm is waited for, which requeues.", file=sys.stderr, flush=True)
        time.sleep(inside.VERDICT_S)
    stop = inside.why("")
    blind = nostart.find(said, log)
    verdict = _by_slurm(rundir, stop) or _by_nodes(rundir, before, blind)
    verdict = verdict or _by_itself(rundir, before, outcome, f"{said}\n{log}")
    endings.record(rundir, before, outcome, verdict)
    print(f"hpctool: {verdict.state}: {verdict.cause}", file=sys.stderr, flush=True)
    if verdict.state == "requeued":
        if verdict.failure and blind:
            # The job ends the moment that this is granted; it has yet to be told which nodes to leave out.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            inside.requeue_without(endings.left_out(rundir))
        elif stop.ask == "plain":
            inside.try_requeue()
        return EXIT_CONTINUE
    return EXIT_INPUT if outcome.first_code == EXIT_INPUT else EXIT_FAILED


def _by_slurm(rundir: RunDir, stop: inside.Stop) -> Verdict | None:
    """What Slurm's own stop means, where it came before the ranks had saved."""
    if stop.cause == "cancelled":
        return Verdict("cancelled", "cancelled in Slurm; there was no time to save")
    if stop.cause in ("preempted", "requeued"):
        return Verdict("requeued", f"{stop.cause}; there was no time to save")
    if stop.cause == "timeout":
        stopped = Stopped("timeout", endings.committed_step(rundir.story()))
        if over := endings.too_many_timeouts(rundir, stopped):
            return Verdict("failed", over)
        return Verdict("requeued", "timeout; there was no time to save")
    return None


def _by_nodes(rundir: RunDir, before: Story, blind: dict[str, str]) -> Verdict | None:
    """What it means that ranks could not begin on some nodes because something is not there."""
    return endings.judge_unfit(rundir, before.attempt + 1, blind) if blind else None


def _by_itself(rundir: RunDir, before: Story, outcome: Outcome, words: str) -> Verdict:
    """What it means that ranks ended though Slurm wanted nothing of them."""
    if match := _OUT_OF_MEMORY.search(words):
        line = match.group(1).strip()
        return Verdict(
            "failed", f"out of memory, says Slurm ({line}); ask for more resources.mem_gb, or train with less"
        )
    max_failures = int(config.load(rundir.config_yaml).cluster.max_failures)
    return endings.judge(rundir, before, outcome, max_failures)


def _before(rundir: RunDir) -> Story:
    """The run's story up to the beginning of this job's attempt; all of it if the attempt never began."""
    entries = rundir.story().entries
    mine = (inside.slurm_job_id(), inside.restart_count())
    for position, entry in enumerate(entries):
        body = entry.body
        if body["kind"] == "begun" and (body.get("slurm_job_id"), body.get("restart_count", 0)) == mine:
            return fold(entries[:position])
    return fold(entries)


def _outcome(code: int, said: str) -> Outcome:
    """The rank that went first, with its exit code or signal, as srun tells it."""
    match = _TASK_ENDED.search(said)
    if match is None:
        return Outcome((_signed(code),), first_rank=0)
    rank, how = int(match.group(1)), match.group(2)
    number = re.search(r"exit code (\d+)", how)
    by_signal = {signal.strsignal(one): -one for one in signal.valid_signals()}
    first = int(number.group(1)) if number else by_signal.get(re.sub(r" \(core dumped\)$", "", how), _signed(code))
    return Outcome((0,) * rank + (first,), first_rank=rank)


def _signed(code: int) -> int:
    """A shell's exit code as Python has it: killed by signal 9 is -9, not 137."""
    return 128 - code if code > 128 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
