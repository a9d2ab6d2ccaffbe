"""GPUs and other generic resources, as people ask for them and as Slurm lists them: `2`, `a100:2`, `gpu:a100:2`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpctool.errors import ConfigError

# A type may begin with a digit (`1g.10gb`, a slice of a GPU) or be a number (`gpu:3090:8`): what stands last counts.
_TYPE = r"(?P<type>(?!\d+[kKmMgGtT]?$)\w[\w.+-]*)"
_ENTRY = re.compile(rf"(?P<name>[A-Za-z][\w.-]*)(?::{_TYPE})?(?::(?P<count>\d+)(?P<unit>[kKmMgGtT]?))?")
_GPUS = re.compile(rf"(?:{_TYPE}:)?(?P<count>\d+)")
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

#: The three keys that ask for GPUs as numbers; `gres` is the fourth style.
GPU_KEYS = ("gpus_per_node", "gpus_per_task", "gpus")


@dataclass(frozen=True)
class Gres:
    """So many of a generic resource; an empty type is any."""

    name: str
    type: str
    count: int

    def __str__(self) -> str:
        return ":".join(filter(None, (self.name, self.type, str(self.count))))

    def is_a(self, wanted: Gres) -> bool:
        """Whether this kind of thing is what was asked for, be it too few of it."""
        return self.name == wanted.name and wanted.type.lower() in ("", self.type.lower())


def parse_gres(text: str, key: str = "resources.gres") -> list[Gres]:
    """`gpu:a100:2,nvme` as a list. Raises ConfigError."""
    found = []
    for entry in _entries(text):
        if (one := _gres(entry)) is None:
            raise ConfigError(key, f"'{entry}' is no generic resource. Write name:count or name:type:count.")
        found.append(one)
    return found


def listed_gres(text: str) -> list[Gres]:
    """What Slurm lists of a node, without what it adds of sockets (`(S:0-1)`) and what cannot be read."""
    return [one for entry in _entries(re.sub(r"\([^)]*\)", "", text)) if (one := _gres(entry)) is not None]


def _entries(text: str) -> list[str]:
    return [entry for entry in text.split(",") if entry]


def _gres(entry: str) -> Gres | None:
    # Nodes list what is shared without being counted as `name:no_consume:1`.
    match = _ENTRY.fullmatch(entry.replace(":no_consume", "").removeprefix("gres/").removeprefix("gres:"))
    if match is None:
        return None
    return Gres(match["name"], match["type"] or "", int(match["count"] or 1) * _UNITS[(match["unit"] or "").lower()])


def parse_gpus(value: int | str | None, key: str) -> list[Gres]:
    """GPUs as `2`, `a100:2` or `a100:2,h100:1`; empty for null and 0. Raises ConfigError."""
    found = []
    for part in str(0 if value is None else value).split(","):
        match = _GPUS.fullmatch(part.strip())
        if match is None:
            raise ConfigError(key, f"'{value}' is no number of GPUs. Write 2, or with a type a100:2.")
        if int(match["count"]):
            found.append(Gres("gpu", match["type"] or "", int(match["count"])))
    return found


def of_a_node(resources: Mapping[str, Any]) -> list[Gres]:
    """What a job asks of each of its nodes, whichever way it asks. Raises ConfigError."""
    found = parse_gres(resources["gres"] or "")
    found += parse_gpus(resources["gpus_per_node"], "resources.gpus_per_node")
    for one in parse_gpus(resources["gpus_per_task"], "resources.gpus_per_task"):
        found.append(Gres(one.name, one.type, one.count * resources["tasks_per_node"]))
    for one in parse_gpus(resources["gpus"], "resources.gpus"):
        # Slurm spreads a total as it likes, at least one to each node.
        found.append(Gres(one.name, one.type, max(1, one.count // resources["nodes"])))
    return found


def num_gpus(resources: Mapping[str, Any]) -> int:
    """The GPUs of a job, over all its nodes."""
    total = parse_gpus(resources["gpus"], "resources.gpus")
    return count_gpus(total) if total else count_gpus(of_a_node(resources)) * int(resources["nodes"])


def count_gpus(gres: Iterable[Gres]) -> int:
    """How many GPUs are in a list of generic resources."""
    return sum(one.count for one in gres if one.name == "gpu")
