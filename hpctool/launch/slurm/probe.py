"""The doctor's probe: a short job of two nodes that finds out what the login node cannot know."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpctool import config, files
from hpctool.errors import CorruptError, InputError, SchedulerError, listing
from hpctool.launch import snapshot
from hpctool.launch.slurm import ask, check, script, states
from hpctool.launch.slurm.doctor import PROVE_IT, Report, Section
from hpctool.launch.slurm.findings import Finding
from hpctool.launch.slurm.probe_node import PRIMITIVES, ROUNDS, versions

Say = Callable[[str], None]

NUM_NODES = 2
MINUTES = "10"
#: Clocks that differ by more make times of different nodes hard to compare.
CLOCK_S = 2.0
#: Files of a job that has ended may become visible a little later, or much later if nothing of it is to be seen yet.
_LATE_S, _NOTHING_S = 2.0, 10.0


def run_probe(report: Report, cfg: DictConfig, patience_s: float, say: Say) -> bool:
    """Submit the probe, wait for it, and add what it found to the report; whether all that jobs need is there.

    Raises InputError, SubmitError, OSError.
    """
    if report.site is None:
        raise InputError("--probe submits a job, and there is no Slurm here that would take it. Leave it out.")
    cfg = _of_two_nodes(cfg, report)
    runs = Path(cfg.paths.runs).absolute()
    check.before_submission(runs, [config.to_plain(cfg)], say)
    folder = runs / f".doctor-{uuid.uuid4().hex[:8]}"
    (folder / "logs").mkdir(mode=0o700, parents=True)
    files.write_json(folder / "token.json", folder.name)
    path = folder / "submit.sh"
    files.write_atomic(path, _script(folder, cfg), mode=0o755)
    job_id = script.submit_script(path)
    say(f"The probe is job {job_id}; it takes a minute once it runs. Ctrl-C gives it up.")
    try:
        report.probe, problem = _await(job_id, folder, cfg.resources.nodes, patience_s, say)
    finally:
        with contextlib.suppress(SchedulerError):
            ask.call("scancel", job_id)
    found = _missing(report.probe, cfg.resources.nodes, problem, folder) or list(judge(report.probe, folder.name))
    good = not any(one.level == "CHANGE" for one in found)
    report.sections.append(Section(f"What {cfg.resources.nodes} nodes have found (job {job_id})", found))
    if good:
        report.sections = [_without_doubt(section) for section in report.sections]
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"What the probe left lies in {folder}.")
    return good


def _without_doubt(section: Section) -> Section:
    """A section without what the probe was asked for."""
    return Section(section.title, [one for one in section.findings if one.advice != PROVE_IT])


def _of_two_nodes(cfg: DictConfig, report: Report) -> DictConfig:
    assert report.site is not None
    cfg = copy.deepcopy(cfg)
    names = (cfg.cluster.partition or report.site.default_partition).split(",")
    there = [report.site.partitions[name].num_nodes for name in names if name in report.site.partitions]
    cfg.resources.nodes = min([NUM_NODES, *there])
    cfg.resources.tasks_per_node = 1
    cfg.resources.time = MINUTES
    cfg.name = "doctor"
    return cfg


def _script(folder: Path, cfg: DictConfig) -> str:
    """The batch script that a job of this configuration would have, around the probe."""
    runs = folder.parent
    code = snapshot.take(runs, Path.cwd())
    environment = snapshot.environment_of(runs, code.record(), str(Path.cwd()))
    submitter = script.Submitter(folder / "logs", cfg, environment)
    srun = shlex.join(["srun", f"--output={folder}/logs/%t.txt", *submitter.srun_args])
    command = f"{srun} {submitter.python_of_ranks} -u -m hpctool.launch.slurm.probe_node {shlex.quote(str(folder))}"
    return submitter.script(f"{command}\ncode=$?")


def _await(job_id: str, folder: Path, num_nodes: int, patience_s: float, say: Say) -> tuple[list[dict[str, Any]], str]:
    """What the ranks have found, and a sentence on why it is not all."""
    given_up_s, over_s = time.monotonic() + patience_s, float("inf")
    shown = ""
    while True:
        found = _read(folder, num_nodes)
        if len(found) == num_nodes:
            return found, ""
        state, reason = _state(job_id)
        if states.is_over(state):
            over_s = min(over_s, time.monotonic())
            patient_s = _LATE_S if os.listdir(folder / "logs") else _NOTHING_S
            if time.monotonic() > over_s + patient_s:
                return found, f"it ended as {state} ({reason})"
        elif state == "PENDING":
            if reason != shown:
                shown = reason
                say(f"The probe waits in the queue ({reason}).")
            if time.monotonic() > given_up_s:
                return found, f"it was still in the queue after {patience_s / 60:.0f} min ({reason})"
        time.sleep(2.0 if state == "PENDING" else 0.5)


def _read(folder: Path, num_nodes: int) -> list[dict[str, Any]]:
    found = []
    for rank in range(num_nodes):
        with contextlib.suppress(FileNotFoundError, CorruptError):
            found.append(files.read_json(folder / f"found-{rank}.json"))
    return found


def _state(job_id: str) -> tuple[str, str]:
    """The job's state and reason; what cannot be asked now is asked again."""
    try:
        record = ask.show("job", job_id)[0]
    except (SchedulerError, IndexError):
        return "UNKNOWN", ""
    return states.base(record.get("JobState", "UNKNOWN")), record.get("Reason", "")


def _missing(found: list[dict[str, Any]], num_nodes: int, problem: str, folder: Path) -> list[Finding]:
    """What to say if not every node has answered; empty if all have."""
    if len(found) == num_nodes:
        return []
    if "queue" in problem:
        advice = "Try again later, or give another partition: hpctool doctor --probe cluster.partition=…"
        return [Finding("CHANGE", f"The probe has not run: {problem}.", advice)]
    logs = sorted((folder / "logs").iterdir())
    if not logs:  # Slurm could not even begin the job's own log
        return [
            Finding(
                "CHANGE",
                f"The probe left nothing in {folder.parent}: {problem}. So compute nodes do not see this folder, or "
                "may not write there.",
                "Let runs lie on a file system that all nodes share: HPCTOOL_ROOT=/shared/… (ask your site which).",
            )
        ]
    words = [line for path in logs for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return [
        Finding(
            "CHANGE",
            f"The probe failed: {problem}. {f'Its last words: {words[-1][:300]}' if words else 'It said nothing.'}",
            "Most often Python or its packages are not where compute nodes see them: install them on a shared file "
            "system, or say in cluster.setup what jobs need (module load …, source …/bin/activate).",
        )
    ]


def judge(found: list[dict[str, Any]], token: str) -> Iterator[Finding]:
    """What the answers of all nodes mean."""
    hosts = " and ".join(one["host"] for one in found)
    unseen = [one["host"] for one in found if one["unseen"] or one["token"] != token]
    if unseen:
        yield Finding(
            "CHANGE",
            f"{listing(unseen)} did not see what the others wrote into the folder for runs.",
            "Let runs lie on a file system that all nodes share: HPCTOOL_ROOT=/shared/… (ask your site which).",
        )
    elif len(found) == 1:
        yield Finding("OK", f"Files: {hosts} sees what this machine writes. The partition has one node only.")
    else:
        yield Finding("OK", f"Files: {hosts} see what each other and this machine write.")
    if not unseen:
        yield _names(found)
    yield _scontrol(found)
    yield from _packages(found)
    yield from _clocks(found)
    interfaces = sorted({f"{name} ({address})" for one in found for name, address in one["interfaces"].items()})
    yield Finding(
        "OK", f"Network interfaces with an address: {listing(interfaces)}. To choose one: cluster.interface=…"
    )


def _names(found: list[dict[str, Any]]) -> Finding:
    """Whether a name is created by one only: what the run folder's ledger stands on."""
    problems = []
    for primitive in PRIMITIVES:
        won = [one["won"][primitive] for one in found]
        errors = [text for text in won if isinstance(text, str)]
        if errors:
            problems.append(f"{primitive}: {errors[0]}")
        elif any(sum(winners) != 1 for winners in zip(*won, strict=True)):
            problems.append(f"{primitive}: two nodes created the same name")
        else:
            how = "hard" if primitive == "link" else "symbolic"
            return Finding("OK", f"Of nodes that create the same name at once, one wins ({how} links, {ROUNDS} names).")
    return Finding(
        "CHANGE",
        f"This file system cannot say which of two nodes was first ({'; '.join(problems)}), and hpctool's records of "
        "runs and versions of data stand on that.",
        "Put runs and datasets on another file system (HPCTOOL_ROOT=…): NFS, Lustre, GPFS and BeeGFS can.",
    )


def _scontrol(found: list[dict[str, Any]]) -> Finding:
    without = [one["host"] for one in found if not one["scontrol"]]
    if not without:
        return Finding("OK", "Jobs can ask Slurm why they are stopped, and go back into the queue (scontrol is there).")
    return Finding(
        "CHANGE",
        f"There is no scontrol on {listing(without)}. A job that saves before its time limit cannot put itself back "
        "into the queue from there.",
        "Ask your site to install Slurm's programs on compute nodes, or add their folder to PATH in cluster.setup. "
        "Until then: hpctool runs retry RUN.",
    )


def _packages(found: list[dict[str, Any]]) -> Iterator[Finding]:
    here = versions() | {"Python": platform.python_version()}
    good = True
    for one in found:
        for name, why in one["not_importable"].items():
            good = False
            yield Finding(
                "CHANGE",
                f"{one['host']} cannot import {name} ({why}).",
                f"It runs {one['executable']}. Install {name} there, or say in cluster.setup what jobs need.",
            )
        for name, version in {**one["versions"], "Python": one["python"]}.items():
            if version != here[name] and name not in one["not_importable"]:
                good = False
                text = f"{one['host']} has {name} {version}, and this machine {here[name]}."
                yield Finding(
                    "NOTE", text, "Results may differ in the last bits; the same environment for both is best."
                )
    if good:
        shown = ", ".join(f"{name} {version}" for name, version in here.items())
        yield Finding("OK", f"Programs: jobs import what is installed here ({shown}).")


def _clocks(found: list[dict[str, Any]]) -> Iterator[Finding]:
    clock = found[0].get("clock")
    if not clock:
        return
    ahead_s, uncertain_s = clock["ahead_s"], clock["uncertain_s"]
    names = f"{found[0]['host']} and {found[1]['host']}"
    if abs(ahead_s) - uncertain_s > CLOCK_S:
        yield Finding(
            "NOTE",
            f"The clocks of {names} differ by {abs(ahead_s):.1f} s. Nothing breaks by it, but times in logs of "
            "different nodes cannot be compared.",
            "Tell your site; clocks are usually kept equal by chrony or ntpd.",
        )
    else:
        yield Finding("OK", f"The clocks of {names} agree (within {abs(ahead_s) + uncertain_s:.2f} s).")
