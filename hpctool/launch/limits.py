"""What a job asks for, in the forms that people write: read, and refused where it cannot mean anything.

What the cluster at hand can give is looked at in slurm/check.py.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from hpctool import config
from hpctool.errors import ConfigError, nearest
from hpctool.launch import alert, gres

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A line break would begin another #SBATCH line; the others have no business in a batch script.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_WORD = re.compile(r"[A-Za-z0-9][\w.,/-]*")
_MOUNT = re.compile(r"/[^:,]*(:/[^:,]*(:(ro|rw))?)?")
_OPTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
KINDS = ("inline", "local", "slurm")
CONTAINERS = ("apptainer", "pyxis")
MAILS = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT"),
    *("TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS"),
)

Values = Mapping[str, Any]

#: What must be at least so much, where it is given.
LEAST: dict[str, dict[str, float]] = {
    "cluster": {
        **{"max_parallel": 1, "cells_at_once": 1},
        **{"signal_delay_s": 0, "kill_wait_s": 0, "max_failures": 0, "max_timeouts": 0},
    },
    "resources": {
        **{"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "cpus_per_gpu": 1},
        # 0 is all the memory of a node.
        **{"mem_gb": 0, "mem_per_cpu_gb": 1 / 1024, "mem_per_gpu_gb": 1 / 1024},
    },
}

#: Of each of these Slurm takes one.
EITHER = (
    ("gpus_per_node", "gpus_per_task", "gpus", "gres"),
    ("mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb"),
    ("cpus_per_task", "cpus_per_gpu"),
)

#: sbatch's options that have a key of their own …
KEYS = {
    **{key: f"cluster.{key}" for key in ("partition", "account", "qos", "constraint", "exclude", "nodelist")},
    **{key: f"cluster.{key}" for key in ("reservation", "comment")},
    **{key.replace("_", "-"): f"cluster.{key}" for key in ("mail_type", "mail_user")},
    **{key: f"resources.{key}" for key in ("nodes", "gpus", "gres", "time", "exclusive", "licenses")},
    **{key.replace("_", "-"): f"resources.{key}" for key in ("gpus_per_node", "gpus_per_task", "cpus_per_task")},
    **{"cpus-per-gpu": "resources.cpus_per_gpu", "ntasks-per-node": "resources.tasks_per_node"},
    **{"mem": "resources.mem_gb", "mem-per-cpu": "resources.mem_per_cpu_gb", "mem-per-gpu": "resources.mem_per_gpu_gb"},
    **{"job-name": "name", "signal": "cluster.signal_delay_s"},
}
#: … and those without which a job could not run, come back or be found again.
OURS = (
    *("array", "error", "export", "input", "no-requeue", "ntasks"),
    *("open-mode", "output", "parsable", "requeue", "wrap"),
)


def time_limit_s(text: str) -> int:
    """Seconds of a time limit as Slurm reads it: `90` (minutes), `4:00:00`, `30:00` (minutes:seconds), `2-12`,
    `2-12:30`, `2-12:30:00`. Raises ConfigError.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ConfigError("resources.time", f"'{text}' is no time. Write minutes, 4:00:00 or 2-00:00:00.")
    days, first, second, third = (int(match[g]) if match[g] else 0 for g in ("days", "first", "second", "third"))
    if match["days"]:
        seconds = days * 86400 + first * 3600 + second * 60 + third
    elif match["third"]:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    if seconds == 0:
        raise ConfigError("resources.time", "it is zero. Write minutes, 4:00:00 or 2-00:00:00.")
    return seconds


def num_ranks(cfg: DictConfig) -> int:
    """The processes of a job: nodes times tasks on each."""
    return int(cfg.resources.nodes * cfg.resources.tasks_per_node)


def check(cfg: DictConfig) -> None:
    """Check name, cluster and resources of a typed job configuration. Raises ConfigError."""
    if not _NAME.fullmatch(cfg.name) or cfg.name == "sweeps":
        raise ConfigError("name", f"'{cfg.name}' is no name for a folder: letters, digits, '-', '_' and '.'.")
    if cfg.code not in ("reuse", "rerun"):
        raise ConfigError("code", f"'{cfg.code}' is neither reuse nor rerun.")
    if cfg.num_threads < 1:
        raise ConfigError("num_threads", f"it is {cfg.num_threads}; the least is 1.")
    if cfg.seed < 0:
        raise ConfigError("seed", f"it is {cfg.seed}; it is 0 or more.")
    # Plain dicts: a sweep has many cells, and OmegaConf looks at every value twice.
    cluster, resources = config.to_plain(cfg.cluster), config.to_plain(cfg.resources)
    _one_of("cluster.kind", cluster["kind"], KINDS)
    _check_texts({"cluster": cluster, "resources": resources})
    for group, values in (("cluster", cluster), ("resources", resources)):
        _check_least(group, values)
    _check_resources(resources)
    _check_cluster(cluster)
    _check_container(cluster["container"])
    _check_alert(cluster["alert"])
    _check_time(cluster, resources)


def _check_alert(asked: Values) -> None:
    for word in asked["when"]:
        _one_of("cluster.alert.when", word, alert.KINDS)
    if asked["webhook"] and not str(asked["webhook"]).startswith(("https://", "http://")):
        raise ConfigError("cluster.alert.webhook", f"'{asked['webhook']}' is no http address.")
    if asked["command"] and shutil.which(asked["command"][0]) is None:
        raise ConfigError("cluster.alert.command", f"there is no program '{asked['command'][0]}' here.")


def _check_time(cluster: Values, resources: Values) -> None:
    limit_s, delay_s = time_limit_s(resources["time"]), cluster["signal_delay_s"]
    if cluster["kind"] != "inline" and limit_s <= delay_s:
        raise ConfigError(
            "resources.time",
            f"the limit of {limit_s} s is not longer than cluster.signal_delay_s={delay_s}, so the "
            "job would be told to stop before it has begun. Ask for more time or a shorter delay.",
        )
    if cluster["kind"] == "local" and resources["nodes"] > 1:
        raise ConfigError("resources.nodes", f"cluster=local is this one machine, not {resources['nodes']} nodes.")


def _check_least(group: str, values: Values) -> None:
    for key, least in LEAST[group].items():
        if values[key] is not None and values[key] < least:
            raise ConfigError(f"{group}.{key}", f"it is {values[key]}; the least is {least:g}.")
    for key, value in values.get("hang", {}).items():
        if value is not None and value <= 0:
            raise ConfigError(f"{group}.hang.{key}", f"it is {value}; it must be above 0, or null for no limit.")


def _check_resources(resources: Values) -> None:
    """Numbers that mean something, and nothing asked twice in two ways."""
    wanted = gres.of_a_node(resources)
    for keys in EITHER:
        given = [key for key in keys if _is_given(resources, key)]
        if len(given) > 1:
            first, second = given[:2]
            off = "0" if first == "gpus_per_node" else "null"
            raise ConfigError(
                f"resources.{second}",
                f"it says once more what resources.{first}={resources[first]} says already, and Slurm takes one of "
                f"the two. To keep this one, add resources.{first}={off}.",
            )
    for key in ("cpus_per_gpu", "mem_per_gpu_gb"):
        if resources[key] is not None and not gres.count_gpus(wanted):
            raise ConfigError(
                f"resources.{key}", "it counts by GPU, and no GPU is asked for: resources.gpus_per_node=1"
            )


def _is_given(resources: Values, key: str) -> bool:
    if key in gres.GPU_KEYS:
        return bool(gres.parse_gpus(resources[key], f"resources.{key}"))
    if key == "gres":
        return gres.count_gpus(gres.parse_gres(resources["gres"] or "")) > 0
    return resources[key] is not None


def _check_texts(values: Values) -> None:
    """No text of cluster and resources may break out of its line; set-up lines are shell code and may be several."""
    for key, text in _texts(values):
        is_shell = key in ("cluster.setup", "cluster.teardown")
        found = _CONTROL.search(text.replace("\n", "").replace("\t", "") if is_shell else text)
        if found:
            raise ConfigError(key, f"it holds the control character {found.group()!r}, which no batch script may hold.")
        if "\\" in text and not is_shell and not key.startswith(("cluster.srun_args", "cluster.container")):
            raise ConfigError(key, f"'{text}' holds a backslash, which sbatch reads in a way of its own. Leave it out.")
        if not is_shell and text != text.strip():
            raise ConfigError(key, f"'{text}' begins or ends with a space. Leave the space out.")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text below a value with the key it stands at."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(str(name), key)
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _check_cluster(cluster: Values) -> None:
    for key in ("partition", "account", "qos", "reservation", "interface", "mpi"):
        if cluster[key] is not None and not _WORD.fullmatch(cluster[key]):
            raise ConfigError(f"cluster.{key}", f"'{cluster[key]}' is no name: letters, digits, '-', '_' and '.'.")
    for word in (cluster["mail_type"] or "").upper().split(",") if cluster["mail_type"] else []:
        _one_of("cluster.mail_type", word, MAILS)
    for key in ("setup", "teardown"):
        for line in "\n".join(cluster[key]).splitlines():
            if line.lstrip().startswith("#SBATCH"):
                hint = "write cluster.extra={name: value}"
                raise ConfigError(f"cluster.{key}", f"'{line}' is an option of sbatch: {hint}.")
    for name in cluster["extra"]:
        if name in KEYS or name in OURS:
            hint = f"write {KEYS[name]}=…" if name in KEYS else "hpctool sets it, since jobs depend on it"
            raise ConfigError(f"cluster.extra.{name}", f"sbatch's --{name} is not for here: {hint}.")
        if not _OPTION.fullmatch(name):
            raise ConfigError(
                "cluster.extra", f"'{name}' is no option of sbatch. Write it as in --mail-type: mail-type."
            )
    for option in cluster["srun_args"]:
        if not option.startswith("-"):
            raise ConfigError("cluster.srun_args", f"'{option}' is no option of srun: write it as one, --name=value.")


def _check_container(container: Values) -> None:
    _one_of("cluster.container.kind", container["kind"], CONTAINERS)
    for mount in container["mounts"]:
        if not _MOUNT.fullmatch(mount):
            raise ConfigError(
                "cluster.container.mounts",
                f"'{mount}' is no mount. Write /data, or /outside:/inside, or /outside:/inside:ro, without commas.",
            )
    if container["kind"] == "pyxis":
        for option in container["extra"]:
            if not option.startswith("--"):
                raise ConfigError(
                    "cluster.container.extra", f"'{option}' is no option of srun, such as --container-writable."
                )


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(key, f"'{value}' is not one of {', '.join(known)}.", nearest(value, known))
