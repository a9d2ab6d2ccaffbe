"""Place: where this process stands among the ranks, as torchrun, an MPI launcher or srun left it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hpctool.errors import WorldError


@dataclass(frozen=True)
class Place:
    """Where a process stands among the ranks: all counts from 0, `size` of them on `num_nodes` machines."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    source: str = "alone"


# launcher → the variables that say rank, size, rank on this node, ranks on this node
_LAUNCHERS: dict[str, tuple[str, str, str, str]] = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "openmpi": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpich": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


def place_from_environment(environ: Mapping[str, str] = os.environ) -> Place:
    """Read rank and size as torchrun, an MPI launcher or srun left them; alone where none did.

    A batch script is no rank: Slurm counts only inside a step (`SLURM_STEP_NUM_TASKS`), so that being inside an
    allocation changes nothing. Raises WorldError on values that make no sense.
    """
    said = {source: names for source, names in _LAUNCHERS.items() if names[0] in environ and names[1] in environ}
    # srun with PMI sets PMI_RANK too, but only MPICH's own launcher says who is where on a node. Who speaks of one rank
    # alone has started something that then started more: `hpctool run` a script, and that mpirun.
    for source, names in sorted(said.items(), key=lambda item: (environ[item[1][1]] == "1", item[1][2] not in environ)):
        try:
            rank, size = int(environ[names[0]]), int(environ[names[1]])
            local_rank = int(environ.get(names[2], "0"))
            node = int(environ.get("SLURM_NODEID", "0")) if source == "slurm" else 0
            local_size = _tasks_on_node(environ.get(names[3], str(size)), node)
        except (ValueError, IndexError) as error:
            raise WorldError(f"What {source} says in {', '.join(names)} cannot be read: {error}.") from error
        if not 0 <= rank < size:
            raise WorldError(f"{names[0]}={rank} and {names[1]}={size} do not fit: ranks count from 0. Set both anew.")
        return Place(rank, size, local_rank, local_size, source)
    return Place()


def _tasks_on_node(text: str, node: int) -> int:
    """One node's share of Slurm's `2(x3),1`, which means 2, 2, 2 and 1 tasks on four nodes."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, repeat = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(repeat or "1")
    return counts[node]
