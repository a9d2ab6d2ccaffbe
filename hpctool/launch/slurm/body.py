"""The part of a batch script that is ours: plain bash that starts the ranks, survives what stops them, and comes back.

It is the only one that asks for a requeue, and it can do so where the ranks cannot: outside their container, and after
one of them was killed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Slurm may stop a job while Python still imports: what comes before our handlers stand is held back, not lost.
HOLD = (
    "import os, signal, sys; "
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)

#: Printed when an attempt begins: a job that is requeued appends to the same log.
ATTEMPT = "hpctool: attempt by job"

_FUNCTION = """\
# Slurm's SIGTERM is for the ranks, which save. This shell stays, to see how they end.
trap : TERM
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}

# Until the ranks listen, signals wait for them; nobody dies of "User defined signal".
hold={hold}

# attempt RUN, or attempt --array SUBMISSION INDEX: one attempt with all its ranks.
attempt() {{
    local code said={logs}/srun-$job-${{SLURM_RESTART_COUNT:-0}}-$BASHPID.txt
    echo "{mark} $job, start ${{SLURM_RESTART_COUNT:-0}}"
    {srun} \\
        {python} -ISc "$hold" -u -m hpctool.launch.task "$@" 2> "$said"
    code=$?
    [ -s "$said" ] && cat "$said" >&2 || rm -f "$said"
    # 0: done. 75: saved, and to be continued. Anything else is looked into.
    if [ $code != 0 ] && [ $code != 75 ]; then
        {outside} -m hpctool.launch.slurm.settle --code $code --said "$said" --log {log} "$@"
        code=$?
    fi
    return $code
}}
"""

_END = """\
# `incomplete`: a job that its user has cancelled stays cancelled. Granted, it ends this script.
if [ $code = 75 ]; then
    scontrol requeue incomplete "$job" && sleep 3600
fi
exit $code
"""


@dataclass(frozen=True)
class Commands:
    """How a script calls things: `python` inside the job's step, `outside` in the script itself, options of srun."""

    python: str
    outside: str
    srun_args: Sequence[str]
    logs: Path
    is_array: bool


def attempt_text(commands: Commands) -> str:
    """The shell function `attempt` and what it needs."""
    name = "%A_%a" if commands.is_array else "%j"
    log = f'{shlex.quote(str(commands.logs))}/"$job"_0_log.out'
    srun = [
        # What ranks say before they have logs of their own goes through srun into the script's log. With a file for
        # each rank (%t) a node that cannot make it hangs the step for 120 s, and Slurm does not say which node it was.
        *("srun", "--unbuffered", "--label", "--open-mode=append", f"--output={commands.logs}/{name}_0_log.out"),
        # A rank that fails ends all: the others would wait for it until the time limit.
        *("--kill-on-bad-exit=1", *commands.srun_args),
    ]
    return _FUNCTION.format(
        mark=ATTEMPT,
        hold=shlex.quote(HOLD),
        logs=shlex.quote(str(commands.logs)),
        log=log,
        srun=shlex.join(srun),
        python=commands.python,
        outside=commands.outside,
    )


def whole(commands: Commands, work: str) -> str:
    """The body around `work`: shell lines that call `attempt` and leave the job's exit code in `code`."""
    return "\n".join([attempt_text(commands), work, "", _END])
