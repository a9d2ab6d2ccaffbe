"""What this cluster, or this machine, means for jobs, in plain words: read from its own configuration.

A section is a heading and findings; `probe.py` adds what only a job can find out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.errors import SchedulerError, listing
from hpctool.launch import limits
from hpctool.launch.gres import Gres
from hpctool.launch.schema import JobConfig
from hpctool.launch.slurm import ask, check, site, stops
from hpctool.launch.slurm.findings import Finding
from hpctool.launch.slurm.site import Partition, Site

#: File systems that other machines see too; any other one is this machine's own, as far as one can tell from here.
SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cephfs", "fuse.ceph", "pvfs2", "wekafs", "panfs", "9p")
#: What srun lists beside the plugins that start MPI programs.
_NO_MPI = ("none", "cray_shasta", "openmpi")


PROVE_IT = "Let two nodes prove it: hpctool doctor --probe"


@dataclass
class Section:
    """Findings that belong together."""

    title: str
    findings: list[Finding]


@dataclass
class Report:
    """All that the doctor has to say."""

    title: str
    sections: list[Section] = field(default_factory=list)
    #: the cluster's own description; None where there is no Slurm, or it does not answer
    site: Site | None = None
    is_silent: bool = False
    mpi_plugins: list[str] = field(default_factory=list)
    measured: stops.Measured = field(default_factory=stops.Measured)
    #: what each node of the probe has found, by rank
    probe: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        rows = [] if self.site is None else partition_rows(self.site)
        return {
            "title": self.title,
            "sections": {one.title: [finding.to_json() for finding in one.findings] for one in self.sections},
            "partitions": [dict(zip(PARTITION_COLUMNS, row, strict=True)) for row in rows],
            "mpi_plugins": self.mpi_plugins,
            "longest_save_s": self.measured.longest_s if self.measured.saves_s else None,
            "probe": self.probe,
        }


def compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> DictConfig:
    """The cluster, resources and paths that a job with these overrides would have. Raises InputError."""
    chosen = any(one.partition("=")[0] == "cluster" for one in overrides)
    whole = config.compose("run", [*([] if chosen else ["cluster=slurm"]), *overrides], config_dirs).cfg
    cfg = config.typed(OmegaConf.create({key: whole[key] for key in JobConfig.__dataclass_fields__}), JobConfig)
    limits.check(cfg)
    return config.resolved(cfg)


def examine(cfg: DictConfig) -> Report:
    """Read what this cluster says of itself, for jobs with these values of cluster and paths. Raises OSError."""
    runs = Path(cfg.paths.runs).absolute()
    if not ask.have("sbatch"):
        return _without_slurm(runs)
    try:
        found = site.read()
    except SchedulerError as error:
        problem = f"Slurm is installed here, but it does not answer: {error.reason}."
        advice = "Ask again later. If it stays so, ask your site's support whether the controller is up."
        sections = [Section("Slurm", [Finding("CHANGE", problem, advice)]), *_files(runs, can_probe=False)]
        return Report("A Slurm that does not answer", sections, is_silent=True)
    report = Report(_title(found), site=found, mpi_plugins=mpi_plugins(), measured=stops.measure(runs))
    delay_s = cfg.cluster.signal_delay_s
    report.sections = [
        Section("When a job is told to stop", _told(stops.findings(found, delay_s, report.measured))),
        Section("How much you may ask for", _told(_limits(found, cfg.cluster.qos, cfg.cluster.account))),
        Section("What jobs find", [*_gpus(found), *_memory(found), _mpi(report.mpi_plugins)]),
        *_files(runs, can_probe=True),
    ]
    return report


def _told(findings: Iterator[Finding]) -> list[Finding]:
    """The findings up to the point at which the accounting database does not answer."""
    found: list[Finding] = []
    try:
        for one in findings:
            found.append(one)
    except SchedulerError as error:
        text = f"The database of accounts does not answer ({error.reason}), so nothing is said of accounts and QOS."
        found.append(Finding("NOTE", text, "Ask again later; jobs run all the same."))
    return found


def _title(found: Site) -> str:
    version = found.config.get("SLURM_VERSION", "of unknown version")
    return f"Slurm {version}, cluster '{found.config.get('ClusterName', '?')}', as {site.user_name()} sees it"


# -- limits


def _limits(found: Site, qos: str | None, account: str | None) -> Iterator[Finding]:
    if found.default_partition:
        yield Finding("OK", f"A job that names no partition goes into '{found.default_partition}'.")
    else:
        names = listing(found.partitions)
        yield Finding("CHANGE", "A job must name its partition: there is no default.", f"cluster.partition= {names}")
    yield Finding(
        "OK",
        f"One array holds up to {found.max_array_tasks:,} tasks. A larger sweep is submitted all the same: its tasks "
        "then take cell after cell until none is left.",
    )
    if not found.has_accounting:
        yield Finding(
            "NOTE",
            "This cluster keeps no accounts and no record of past jobs (no slurmdbd): sacct shows nothing. hpctool "
            "does not need it; its run folders tell how jobs ended.",
        )
        return
    most = found.max_submit_jobs(qos, account)
    if most is not None:
        text = f"You may have {most:,} jobs in the queue at once, each task of an array counted."
        yield Finding(
            "NOTE", f"{text} Of a larger sweep hpctool submits what fits, and its tasks take the other cells."
        )
    yield from _accounts(found)


def _accounts(found: Site) -> Iterator[Finding]:
    if not found.associations:
        if "associations" in found.enforced:
            yield Finding(
                "CHANGE",
                f"Slurm knows no account of yours ({site.user_name()}), so it will refuse your jobs.",
                "Ask your site's support to give you one.",
            )
        return
    names = [f"{a.account} (unless you name another)" if a.is_default else a.account for a in found.associations]
    usable = {name for a in found.associations for name in a.qos}
    text = f"Your accounts: {listing(dict.fromkeys(names))}."
    if usable:
        text += f" Quality of service (QOS, a named set of limits): {listing(_with_time(found, sorted(usable)))}."
    yield Finding("OK", text)


def _with_time(found: Site, names: list[str]) -> list[str]:
    """QOS with their longest time where they have one."""
    known = {name: found.qos[name].max_time_s for name in names if name in found.qos}
    return [f"{name} (up to {check.time_text(limit)})" if limit else name for name, limit in known.items()]


#: CPUs, memory and GPUs are those of the largest node.
PARTITION_COLUMNS = ("partition", "longest job", "nodes", "CPUs", "memory GB", "GPUs", "may be preempted")


def partition_rows(found: Site) -> list[tuple[str, ...]]:
    """A row for each partition: the largest node of it, and whether others may take its nodes away."""
    with_qos = found.config.get("PreemptType") == "preempt/qos"
    preempted = set() if with_qos else {one.whose for one in stops.preemptions(found)}
    rows = []
    for one in found.partitions.values():
        word = "by QOS" if with_qos else "yes" if f"partition {one.name}" in preempted else "no"
        rows.append(_row(found, one, word))
    return rows


def _row(found: Site, partition: Partition, preempted: str) -> tuple[str, ...]:
    shapes = [one for one in found.shapes if one.partition == partition.name]
    name = f"{partition.name} (default)" if partition.is_default else partition.name
    most_s = partition.max_time_s
    gpus = sorted({str(g).removeprefix("gpu:") for one in shapes for g in one.gres if g.name == "gpu"})
    return (
        *(name, "no limit" if most_s is None else check.time_text(most_s), str(partition.num_nodes)),
        str(max((one.cpus for one in shapes), default=0)),
        f"{max((one.memory_mb for one in shapes), default=0) / 1024:.0f}",
        *(", ".join(gpus) or "none", preempted),
    )


# -- what jobs find


def _gpus(found: Site) -> Iterator[Finding]:
    kinds = sorted({(g.name, g.type) for one in found.shapes for g in one.gres if g.name == "gpu"})
    if not kinds:
        yield Finding("OK", "No partition has GPUs.")
        return
    named = [kind for _, kind in kinds if kind]
    # A node counts once, in however many partitions it is.
    nodes = max(
        sum(s.num_nodes for s in found.shapes if s.partition == p and s.count(Gres("gpu", "", 1)))
        for p in found.partitions
    )
    example = f"{named[0]}:1" if named else "1"
    types = f" of type {listing(named)}" if named else ""
    yield Finding("OK", f"GPUs{types} are on {nodes} nodes. Ask for them by resources.gpus_per_node={example}.")


def _memory(found: Site) -> Iterator[Finding]:
    if "MEMORY" not in found.config.get("SelectTypeParameters", "").upper():
        return
    per_cpu, per_node = (found.config.get(key, "UNLIMITED") for key in ("DefMemPerCPU", "DefMemPerNode"))
    if site.number(per_cpu):
        text = f"A job that asks for no memory gets {per_cpu} MB for each of its CPUs."
        yield Finding(
            "NOTE", f"{text} What takes more is killed as out of memory.", "Ask for enough: resources.mem_gb=…"
        )
    elif site.number(per_node):
        text = f"A job that asks for no memory gets {per_node} MB on each node."
        yield Finding(
            "NOTE", f"{text} What takes more is killed as out of memory.", "Ask for enough: resources.mem_gb=…"
        )
    else:
        yield Finding(
            "NOTE",
            "A job that asks for no memory gets all of a node's, so that no other job fits beside it.",
            "Small jobs start sooner if they say what they need: resources.mem_gb=…",
        )


def mpi_plugins() -> list[str]:
    """What `srun --mpi=list` offers, the most usual first; empty where it cannot be asked."""
    try:
        text = ask.call("srun", "--mpi=list", timeout_s=site.TIMEOUT_S, with_stderr=True)
    except SchedulerError:
        return []
    words = [line.strip().removeprefix("srun: ") for line in text.splitlines()]
    found = [word for word in words if re.fullmatch(r"[a-z][a-z0-9_]*", word) and word not in _NO_MPI]
    return sorted(found, key=lambda name: (name != "pmix", name))


def _mpi(plugins: list[str]) -> Finding:
    if not plugins:
        return Finding(
            "NOTE",
            "srun offers no plugin that starts MPI programs. Training by torch needs none.",
            "For MPI programs ask your site for Slurm's PMIx plugin; mpirun loses jobs that are preempted.",
        )
    return Finding(
        "OK",
        f"srun starts MPI programs by {listing(plugins)}. Training by torch needs none of it.",
        f"For jobs whose ranks are joined by MPI: cluster.mpi={plugins[0]}.",
    )


# -- files


def _files(runs: Path, *, can_probe: bool) -> list[Section]:
    there = next(folder for folder in (runs, *runs.parents) if folder.exists())
    kind = file_system(there)
    room = os.statvfs(there)
    free = f"{room.f_bavail * room.f_frsize / 2**30:,.1f} GB free"
    text = f"Runs lie in {runs} ({kind}, {free})."
    findings = [Finding("OK", text)]
    if not os.access(there, os.W_OK, effective_ids=True):
        findings = [Finding("CHANGE", f"{text} You may not write there.", "Choose another folder: HPCTOOL_ROOT=…")]
    elif kind not in SHARED and can_probe:
        doubt = "Compute nodes must see this folder, too; whether they do cannot be told from here."
        findings.append(Finding("NOTE", doubt, PROVE_IT))
    return [Section("Files", findings)]


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, as the kernel calls it."""
    best, kind = "", "unknown file system"
    target = str(folder.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted, name, *_ = line.split(" ")
        mounted = mounted.encode().decode("unicode_escape")
        inside = target == mounted or target.startswith(mounted.rstrip("/") + "/")
        # The last one of the same path is on top.
        if inside and len(mounted) >= len(best):
            best, kind = mounted, name
    return kind


def _without_slurm(runs: Path) -> Report:
    cpus = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    what = f"{cpus} CPUs, {memory_gb:.0f} GB of memory, {gpus or 'no'} GPU{'s' if gpus != 1 else ''}"
    findings = [
        Finding("OK", f"There is no Slurm here (no sbatch). This machine has {what}."),
        Finding("OK", "cluster=inline, the default, runs a job here and now, in this terminal."),
        Finding(
            "OK",
            "cluster=local runs jobs in the background of this machine, as many at once as cluster.max_parallel says. "
            "They survive the terminal; hpctool runs list shows them. Several ranks each: resources.tasks_per_node=2.",
        ),
    ]
    return Report("A machine without Slurm", [Section("This machine", findings), *_files(runs, can_probe=False)])
