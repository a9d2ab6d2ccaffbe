"""Refused before submission, with what there is instead: what this cluster cannot run, or would let wait for ever.

Most clusters accept a job that no node can take, or that is longer than its partition allows, and leave it in the
queue. Where Slurm cannot be asked that is said, and sbatch judges.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hpctool import config, files
from hpctool.errors import ConfigError, InputError, SchedulerError, UnknownName, listing, nearest
from hpctool.launch import gres, limits
from hpctool.launch.slurm import loop, site
from hpctool.launch.slurm.site import Partition, Shape, Site

Plain = Mapping[str, Any]
Say = Callable[[str], None]

#: A run's folder begins with some files of a few KB and a copy of the code.
NEEDED_BYTES, NEEDED_FILES = 16 * 2**20, 100
_PROBE_BYTES = 8192
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR} | files.FULL


def before_submission(runs: Path, configs: Iterable[Plain], say: Say) -> None:
    """Refuse what cannot be submitted: a folder that takes no runs, resources that are not there. InputError, OSError.

    `configs` are the plain configurations of all cells.
    """
    configs = list(configs)
    # Cells share what is alike, so that ten thousand are compared quickly.
    same = {(id(plain["cluster"]), id(plain["resources"])): plain for plain in configs}
    shapes = {files.canonical_json([p["cluster"], p["resources"]]): p for p in same.values()}
    kinds = {plain["cluster"]["kind"] for plain in shapes.values()}
    if kinds - {"inline"}:
        check_folder(runs)
    on_slurm = [plain for plain in shapes.values() if plain["cluster"]["kind"] == "slurm"]
    if on_slurm:
        check([_allocation(plain, len(configs)) for plain in on_slurm], say)


def _allocation(plain: Plain, num_cells: int) -> Plain:
    """What is asked of Slurm for a cell: a share of an allocation, where several run side by side."""
    cluster = plain["cluster"]
    at_once = min(cluster["cells_at_once"], cluster["max_parallel"], num_cells)
    cfg = OmegaConf.create({"cluster": cluster, "resources": plain["resources"]})
    return plain if at_once == 1 else config.to_plain(loop.allocation(cfg, at_once))


def check(configs: Sequence[Plain], say: Say) -> None:
    """Refuse what this cluster cannot run, of plain configurations that differ in cluster or resources.

    Raises ConfigError, UnknownName.
    """
    try:
        found = site.read()
    except SchedulerError as error:
        say(f"Slurm did not say what it has ({' '.join(error.command[:3])}: {error.reason}); sbatch judges.")
        return
    found = _with_accounts(found, configs, say)
    for plain in configs:
        _check_names(found, plain["cluster"])
        _check_partitions(found, plain)


def check_folder(runs: Path) -> None:
    """Refuse a folder for runs where no job could write its log: read-only, full, or with a name that Slurm changes.

    Raises InputError, OSError.
    """
    if set("%\\") & set(str(runs.absolute())):
        raise _refused(runs, "Slurm puts something else in the place of a % or a backslash in the names of its logs")
    there = next(folder for folder in (runs, *runs.parents) if folder.exists())
    probe = there / files.temporary_name(".probe")
    try:
        # What statvfs says knows nothing of quotas.
        files.write_durably(probe, os.urandom(_PROBE_BYTES))
        probe.unlink()
        room = os.statvfs(there)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise _refused(runs, f"{there} cannot be written to ({os.strerror(error.errno)})") from error
    free = room.f_bavail * room.f_frsize
    if free < NEEDED_BYTES:
        raise _refused(runs, f"its file system has {free / 2**20:.1f} MB left")
    # Some file systems do not count their files and say 0 of 0.
    if room.f_files and room.f_favail < NEEDED_FILES:
        raise _refused(runs, f"its file system has room for {room.f_favail} more files (inodes)")


def _refused(runs: Path, problem: str) -> InputError:
    return InputError(
        f"Runs lie in {runs}, but {problem}. Nothing was submitted. Make room there, or choose another folder with "
        "HPCTOOL_ROOT=… or paths.runs=…"
    )


def _with_accounts(found: Site, configs: Sequence[Plain], say: Say) -> Site:
    """The site, without accounts if their database does not answer; says what therefore cannot be checked."""
    if found.has_accounting:
        try:
            # Here, so that nothing further down can fail.
            found.ask_accounts()
        except SchedulerError as error:
            say(f"Accounts and QOS are not checked ({error.command[0]}: {error.reason}); sbatch judges.")
            return replace(found, config={**found.config, "AccountingStorageType": "accounting_storage/none"})
    else:
        named = [f"cluster.{key}" for key in ("account", "qos") if any(p["cluster"][key] is not None for p in configs)]
        if named:
            say(f"{' and '.join(named)} cannot be checked: this cluster has no database of accounts (slurmdbd).")
    return found


def _check_names(found: Site, cluster: Plain) -> None:
    """Partitions, account and QOS that do not exist."""
    for name in _asked_partitions(cluster):
        if name not in found.partitions:
            raise UnknownName("partition", name, found.partitions)
    if not cluster["partition"] and not found.default_partition:
        raise ConfigError("cluster.partition", f"Slurm has no default here. Name one of {listing(found.partitions)}.")
    if found.has_accounting:
        _check_account(found, cluster)


def _check_account(found: Site, cluster: Plain) -> None:
    account, qos = cluster["account"], cluster["qos"]
    mine = [one.account for one in found.associations]
    # Where associations are not enforced, people without one may submit.
    if account is not None and account.lower() not in mine and (mine or "associations" in found.enforced):
        raise UnknownName("account of yours", account, sorted(set(mine)))
    if qos is None:
        return
    if qos not in found.qos:
        raise UnknownName("QOS", qos, found.qos)
    usable = {name for a in found.associations if account in (None, a.account) for name in a.qos}
    if usable and "qos" in found.enforced and qos not in usable:
        whose = f"account '{account}'" if account else "your accounts"
        raise ConfigError("cluster.qos", f"{whose} may not use '{qos}', only {listing(sorted(usable))}.")


def _asked_partitions(cluster: Plain) -> list[str]:
    return [name for name in (cluster["partition"] or "").split(",") if name]


def _check_partitions(found: Site, plain: Plain) -> None:
    """Of several partitions it is enough that one takes the job, unless the site wants all of them to."""
    asked = _asked_partitions(plain["cluster"]) or [found.default_partition]
    problems = [why for name in asked if (why := _why_not(found, found.partitions[name], plain)) is not None]
    needs_all = found.config.get("EnforcePartLimits", "NO") == "ALL"
    if not problems or (len(problems) < len(asked) and not needs_all):
        return
    others = (name for name in found.partitions if name not in asked)
    good = [name for name in others if _why_not(found, found.partitions[name], plain) is None]
    hint = f" It would fit into partition {listing(good)}." if good else ""
    raise ConfigError(problems[0].key, problems[0].problem + hint, problems[0].near)


def _why_not(found: Site, partition: Partition, plain: Plain) -> ConfigError | None:
    """Why a partition cannot run a job, or None."""
    try:
        _check_use(found, partition, plain)
        shapes = [one for one in found.shapes if one.partition == partition.name]
        if shapes:
            _check_nodes(partition.name, shapes, plain)
    except ConfigError as error:
        return error
    return None


def _check_use(found: Site, partition: Partition, plain: Plain) -> None:
    """Who may use a partition, for how long, and with how many nodes. Raises ConfigError."""
    cluster, nodes = plain["cluster"], plain["resources"]["nodes"]
    where = f"partition '{partition.name}'"
    for key, allowed in (("account", partition.accounts), ("qos", partition.allowed_qos)):
        if allowed and cluster[key] is not None and cluster[key] not in allowed:
            raise ConfigError(f"cluster.{key}", f"'{cluster[key]}' may not use {where}; {listing(allowed)} may.")
    if nodes > partition.num_nodes:
        raise ConfigError("resources.nodes", f"{nodes} are asked for, and {where} has {partition.num_nodes}.")
    above = _check_limits(found, partition.name, plain)
    if partition.max_nodes is not None and nodes > partition.max_nodes and "PartitionMaxNodes" not in above:
        raise ConfigError("resources.nodes", f"{nodes} are asked for, and {where} gives a job {partition.max_nodes}.")
    if "PartitionTimeLimit" not in above:
        _check_time(plain, partition.max_time_s, where)


def _check_limits(found: Site, partition: str, plain: Plain) -> set[str]:
    """The limits of QOS and account; returns the limits of the partition that they are above."""
    cluster, resources = plain["cluster"], plain["resources"]
    if not found.has_accounting or "limits" not in found.enforced:
        return set()
    association = found.association(cluster["account"], partition)
    if association is not None:
        _check_time(plain, association.max_time_s, f"account '{association.account}'")
    asked = {"node": resources["nodes"], "gres/gpu": gres.num_gpus(resources)}
    asked["cpu"] = _cpus_of_a_node(resources) * resources["nodes"]
    keys = {"node": "resources.nodes", "gres/gpu": "resources", "cpu": "resources.cpus_per_task"}
    above: set[str] = set()
    for qos in found.qos_of(cluster["qos"], cluster["account"], partition):
        _check_time(plain, qos.max_time_s, f"QOS '{qos.name}'")
        for kind, count in asked.items():
            most = qos.max_of_a_job.get(kind, count)
            if count > most:
                raise ConfigError(keys[kind], f"the job asks for {kind}={count}; QOS '{qos.name}' gives it {most}.")
        above |= set(qos.flags)
    return above


def _check_time(plain: Plain, most_s: int | None, whose: str) -> None:
    text = plain["resources"]["time"]
    if most_s is not None and limits.time_limit_s(text) > most_s:
        raise ConfigError("resources.time", f"{text} is longer than {whose} allows, which is {time_text(most_s)}.")


def _check_nodes(partition: str, shapes: list[Shape], plain: Plain) -> None:
    """Whether there are nodes that have each of the things asked for, and enough that have all of them."""
    resources, where = plain["resources"], f"partition '{partition}'"
    fitting = _with_features(where, shapes, plain["cluster"]["constraint"])
    for wanted in gres.of_a_node(resources):
        _check_gres(where, fitting, wanted, _gres_key(resources, wanted))
        fitting = [one for one in fitting if one.count(wanted) >= wanted.count]
    cpus, memory_mb = _cpus_of_a_node(resources), _memory_of_a_node_mb(resources)
    _check_most("resources.cpus_per_task", where, f"{cpus} CPUs", cpus, max(one.cpus for one in fitting))
    memory = f"{memory_mb} MB of memory"
    _check_most("resources.mem_gb", where, memory, memory_mb, max(one.memory_mb for one in fitting))
    count = sum(one.num_nodes for one in fitting if one.cpus >= cpus and one.memory_mb >= memory_mb)
    if resources["nodes"] > count:
        asked_for = f"{resources['nodes']} are asked for"
        raise ConfigError("resources.nodes", f"{asked_for}, and {where} has {count} with all that the job wants.")


def _check_gres(where: str, shapes: list[Shape], wanted: gres.Gres, key: str) -> None:
    kinds = sorted({str(one) for shape in shapes for one in shape.gres})
    there = f"on a node there is {listing(kinds)}" if kinds else "its nodes have no GPUs or other generic resources"
    kind = ":".join(filter(None, (wanted.name, wanted.type)))
    most = max(shape.count(wanted) for shape in shapes)
    if most == 0 and wanted.count:
        raise ConfigError(key, f"{where} has no {kind}; {there}.")
    _check_most(key, where, str(wanted), wanted.count, most)


def _check_most(key: str, where: str, what: str, asked: int, most: int) -> None:
    if asked > most:
        raise ConfigError(key, f"the job asks for {what} on a node, and the most that a node of {where} has is {most}.")


def _gres_key(resources: Plain, wanted: gres.Gres) -> str:
    """The key that asked for it."""
    if wanted in gres.parse_gres(resources["gres"] or ""):
        return "resources.gres"
    return f"resources.{next(key for key in gres.GPU_KEYS if resources[key])}"


def _with_features(where: str, shapes: list[Shape], constraint: str | None) -> list[Shape]:
    """The nodes that a constraint leaves; of a complicated one only the names are looked at."""
    names = re.findall(r"[^\s&|()\[\],*]+", re.sub(r"\*\d+", "", constraint or ""))
    known = sorted({feature for shape in shapes for feature in shape.features})
    for name in names:
        if name not in known:
            raise ConfigError(
                "cluster.constraint",
                f"no node of {where} has the feature '{name}'; there is {listing(known)}.",
                nearest(name, known),
            )
    if constraint is None or re.search(r"[()\[\]*]", constraint) or ("|" in constraint and "&" in constraint):
        return shapes
    enough = any if "|" in constraint else all
    left = [shape for shape in shapes if enough(name in shape.features for name in names)]
    if not left:
        raise ConfigError("cluster.constraint", f"no node of {where} has all of {constraint}.")
    return left


def _cpus_of_a_node(resources: Plain) -> int:
    if resources["cpus_per_gpu"] is not None:
        return int(resources["cpus_per_gpu"] * gres.count_gpus(gres.of_a_node(resources)))
    return int(resources["tasks_per_node"] * (resources["cpus_per_task"] or 1))


def _memory_of_a_node_mb(resources: Plain) -> int:
    if resources["mem_per_cpu_gb"] is not None:
        return _mb(resources["mem_per_cpu_gb"] * _cpus_of_a_node(resources))
    if resources["mem_per_gpu_gb"] is not None:
        return _mb(resources["mem_per_gpu_gb"] * gres.count_gpus(gres.of_a_node(resources)))
    return _mb(resources["mem_gb"] or 0.0)


def _mb(gigabytes: float) -> int:
    return round(gigabytes * 1024)


def time_text(seconds: int) -> str:
    """A time as Slurm writes it: `2-00:00:00`, `4:00:00`, `0:10:00`."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock.zfill(8)}" if days else clock
