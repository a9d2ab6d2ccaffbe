"""The world of a program that was started by somebody else: its ranks joined the way it has joined them itself."""

from __future__ import annotations

import copy
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from hpctool.errors import WorldError
from hpctool.launch.sockets import ExchangeWorld, SocketWorld
from hpctool.place import Place, place_from_environment
from hpctool.rendezvous import meeting_file, torchrun_name
from hpctool.world import MpiWorld, World

#: A program that Slurm suspends goes on afterwards; peers that died are noticed by their closed connections.
_TIMEOUT = timedelta(hours=24)


def company(folder: Path) -> World:
    """This process's world: by torch.distributed or MPI if the program has set them up, else by sockets; or alone.

    Ranks that know of each other by their environment only meet at a file in `folder`. Collective. Raises WorldError.
    """
    torch = sys.modules.get("torch")
    dist = torch.distributed if torch is not None and torch.distributed.is_available() else None
    if dist is not None and dist.is_initialized() and dist.get_world_size() > 1:
        return _TorchCompany(dist)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and mpi.COMM_WORLD.size > 1:
        return MpiWorld(mpi.COMM_WORLD.Dup())
    place = place_from_environment()
    if place.size == 1:
        return World(place)
    return SocketWorld(place, meeting_file(folder, place) or folder / torchrun_name())


class _TorchCompany(ExchangeWorld):
    """Ranks of a program's own process group, in a further group on CPUs that does not disturb it."""

    backend = "torch"

    def __init__(self, dist: Any) -> None:
        import torch

        said = place_from_environment()
        super().__init__(Place(dist.get_rank(), dist.get_world_size(), said.local_rank, said.local_size, "program"))
        self._torch, self._dist = torch, dist
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def apart(self) -> World | None:
        twin = copy.copy(self)
        twin._group = self._dist.new_group(backend="gloo", timeout=_TIMEOUT)
        return twin

    def exchange(self, mine: bytes) -> list[bytes]:
        lengths = [part[0].item() for part in self._gather(self._torch.tensor([len(mine)], device="cpu"))]
        padded = self._torch.zeros(max(lengths), dtype=self._torch.uint8, device="cpu")
        padded[: len(mine)] = self._torch.frombuffer(bytearray(mine) or bytearray(1), dtype=self._torch.uint8)[
            : len(mine)
        ]
        parts = self._gather(padded) if max(lengths) else [padded] * self.size
        return [part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]

    def _gather(self, tensor: Any) -> list[Any]:
        parts = [self._torch.zeros_like(tensor) for _ in range(self.size)]
        try:
            self._dist.all_gather(parts, tensor, group=self._group)
        except RuntimeError as error:
            raise WorldError(f"Rank {self.rank} lost its peers: {str(error).splitlines()[0]}.") from error
        return parts
