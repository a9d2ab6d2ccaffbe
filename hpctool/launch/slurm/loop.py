"""The batch script of tasks that claim cells one after the other, one loop or several side by side in an allocation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from hpctool.launch import limits
from hpctool.launch.slurm.script import Submitter

_LOOP = """\
again={logs}/again-$job-${{SLURM_RESTART_COUNT:-0}}

# work_off SLOT: claim a cell, run it, claim the next, until none is left.
# 75: this job is to come back, because it was told to stop, or to try a cell once more, or its time is nearly over.
work_off() {{
    local slot=$1 stop= tried= cell code=0 worst=0
    trap stop=1 TERM
    while true; do
        if [ "$stop" ] || [ -e "$again" ]; then code=75; break; fi
        cell=$({outside} -m hpctool.launch.claims {submission} --slot $slot --elapsed $SECONDS --tried "$tried")
        code=$?
        [ $code = 0 ] || break
        tried="$tried $cell"
        attempt --array {submission} "$cell"
        code=$?
        [ $code = 0 ] || [ $code = 75 ] || worst=$code
    done
    case $code in
        3) code=$worst ;;
        # A claim that a signal cut short is there for whoever comes back.
        75 | 143) touch "$again"; code=75 ;;
    esac
    return $code
}}
"""

_ONE = """\
work_off 0
code=$?
rm -f "$again"
"""

_SIDE_BY_SIDE = """\
loops=()
for slot in {slots}; do
    work_off $slot &
    loops+=($!)
done
code=0
for loop in "${{loops[@]}}"; do
    # A signal ends `wait`, and not what is waited for.
    while true; do
        wait "$loop"
        kill -0 "$loop" 2> /dev/null || break
    done
    wait "$loop"
    one=$?
    if [ $one = 75 ] || [ $code = 0 ]; then code=$one; fi
done
rm -f "$again"
"""


def claims_script(
    submission: Path, num_tasks: int, cfg: DictConfig, environment: dict[str, str], cells_at_once: int
) -> str:
    """The batch script of an array whose tasks claim the cells that the file `submission` lists."""
    submitter = Submitter(submission.parent / "logs", allocation(cfg, cells_at_once), environment)
    if cells_at_once > 1:
        submitter.srun_args = [*share(cfg), *submitter.srun_args]
    text = _LOOP.format(
        logs=shlex.quote(str(submission.parent / "logs")),
        outside=submitter.python,
        submission=shlex.quote(str(submission)),
    )
    slots = " ".join(map(str, range(cells_at_once)))
    text += "\n" + (_SIDE_BY_SIDE.format(slots=slots) if cells_at_once > 1 else _ONE)
    return submitter.script(text, num_tasks, num_tasks)


def allocation(cfg: DictConfig, cells_at_once: int) -> DictConfig:
    """The config of an allocation that holds so many cells side by side: each node holds a share of each."""
    if cells_at_once == 1:
        return cfg
    whole = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(whole, DictConfig)
    resources = whole.resources
    resources.tasks_per_node *= cells_at_once
    if resources.mem_gb is not None:
        resources.mem_gb *= cells_at_once
    for key, suffix in (("gpus_per_node", ""), ("gpus", ""), ("gres", ":1"), ("licenses", ":1")):
        if resources[key] is not None:
            parts = str(resources[key]).split(",")
            resources[key] = ",".join(_times(part, cells_at_once, suffix) for part in parts)
    return whole


def share(cfg: DictConfig) -> list[str]:
    """What srun is told so that a cell gets its own part of the allocation and no more."""
    resources = cfg.resources
    found = ["--exact", f"--nodes={resources.nodes}", f"--ntasks={limits.num_ranks(cfg)}"]
    found.append(f"--ntasks-per-node={resources.tasks_per_node}")
    if resources.mem_gb is not None:
        found.append(f"--mem={round(resources.mem_gb * 1024)}M")
    for key in ("gpus_per_node", "gpus", "gres"):
        if resources[key] is not None and str(resources[key]) != "0":
            found.append(f"--{key.replace('_', '-')}={resources[key]}")
    return found


def _times(text: str, factor: int, suffix: str = "") -> str:
    """`2`, `a100:2` or `gpu:a100:2` so many times; `suffix` is what a name without a count means."""
    if not re.search(r"\d+$", text) or not re.search(r"(^|:)\d+$", text):
        text += suffix
    return re.sub(r"\d+$", lambda count: str(int(count[0]) * factor), text)
