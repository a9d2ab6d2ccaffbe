"""World: who am I among the ranks, and the few things ranks do together. torch | mpi | single | fake.

Collectives carry JSON values and NumPy arrays, never pickles. Every collective says so: all ranks must call it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.errors import WorldError

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch._C._distributed_c10d import Store

Operation = Literal["sum", "max", "min"]
Array = npt.NDArray[Any]

# Set by whoever starts the ranks of a run: the file in which rank 0 says where it listens (see `_meeting_point`).
RENDEZVOUS = "HPCTOOL_RENDEZVOUS"


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
    allocation changes nothing. Raises WorldError on values that are not numbers.
    """
    for source, (rank, size, local_rank, local_size) in _LAUNCHERS.items():
        if rank not in environ or size not in environ:
            continue
        try:
            num_ranks = int(environ[size])
            return Place(
                rank=int(environ[rank]),
                size=num_ranks,
                local_rank=int(environ.get(local_rank, "0")),
                local_size=int(environ.get(local_size, str(num_ranks)).split("(")[0].split(",")[0]),
                source=source,
            )
        except ValueError as error:
            raise WorldError(f"The {source} variables {rank} and {size} are not numbers: {error}.") from error
    return Place()


class World:
    """The ranks of one job. This class is the world of one; the others override what needs company."""

    backend = "single"

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.rank = self.place.rank
        self.size = self.place.size
        self.local_rank = self.place.local_rank
        self.local_size = self.place.local_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which decides and writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here. Collective: all ranks must call it."""

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """A JSON value of rank `root`, for every rank. Collective: all ranks must call it."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in order of rank, on every rank. Collective: all ranks must call it."""
        return [value]

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        """Elementwise sum, max or min over the ranks, on every rank; shape and dtype stay. Collective."""
        return np.array(array, copy=True)

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Do something on rank 0 only and give its JSON result to all; its error is raised on all. Collective."""
        answer: dict[str, Any] = {}
        error: BaseException | None = None
        if self.is_main:
            try:
                answer = {"value": action()}
            except Exception as caught:
                error = caught
                answer = {"error": f"{type(caught).__name__}: {caught}"}
        answer = self.broadcast(answer)
        if error is not None:
            raise error
        if "error" in answer:
            raise WorldError(f"Rank 0 failed: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """Leave the world; nothing collective may follow."""

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FakeWorld(World):
    """A rank of a world whose other ranks do exactly what this one does: for tests of distributed code on one CPU."""

    backend = "fake"

    def __init__(self, rank: int = 0, size: int = 2) -> None:
        super().__init__(Place(rank=rank, size=size, local_rank=rank, local_size=size, source="fake"))

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        return np.asarray(array * self.size if operation == "sum" else np.array(array, copy=True))


class TorchWorld(World):
    """Ranks joined by torch.distributed: gloo on CPUs; with GPUs nccl for tensors and gloo for everything else."""

    backend = "torch"

    def __init__(self, place: Place, timeout_s: float = 600.0) -> None:
        super().__init__(place)
        import torch
        import torch.distributed as dist

        self.torch = torch
        self.dist = dist
        self.timeout_s = timeout_s
        self.device = torch.device("cpu")
        backend = "gloo"
        if torch.cuda.is_available():
            # With --gpus-per-task every rank sees one device of its own, number 0.
            self.device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
            backend = "cpu:gloo,cuda:nccl"
        store = _meeting_point(place, timeout_s)
        timeout = timedelta(seconds=timeout_s)
        try:
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timeout)
        except (RuntimeError, ValueError) as error:
            raise WorldError(f"Rank {place.rank} of {place.size} could not join the others: {error}") from error

    def barrier(self) -> None:
        self.reduce(np.zeros(1, np.int64))

    def broadcast(self, value: Any, root: int = 0) -> Any:
        raw = np.frombuffer(json.dumps(value).encode(), np.uint8) if self.rank == root else np.zeros(0, np.uint8)
        length = self.torch.tensor([raw.size], dtype=self.torch.int64)
        self._call(lambda: self.dist.broadcast(length, root))
        buffer = self.torch.zeros(int(length.item()), dtype=self.torch.uint8)
        if self.rank == root:
            buffer.copy_(self.torch.from_numpy(raw.copy()))
        self._call(lambda: self.dist.broadcast(buffer, root))
        return json.loads(buffer.numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.zeros(self.size, np.int64)
        lengths[self.rank] = raw.size
        lengths = self.reduce(lengths)
        width = int(lengths.max())
        mine = self.torch.zeros(width, dtype=self.torch.uint8)
        mine[: raw.size] = self.torch.from_numpy(raw.copy())
        everybody = [self.torch.zeros(width, dtype=self.torch.uint8) for _ in range(self.size)]
        self._call(lambda: self.dist.all_gather(everybody, mine))
        return [json.loads(t[:n].numpy().tobytes()) for t, n in zip(everybody, lengths.tolist(), strict=True)]

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        tensor = self.torch.from_numpy(np.array(array, copy=True, ndmin=1))
        ops = {"sum": self.dist.ReduceOp.SUM, "max": self.dist.ReduceOp.MAX, "min": self.dist.ReduceOp.MIN}
        self._call(lambda: self.dist.all_reduce(tensor, ops[operation]))
        return tensor.numpy().reshape(np.shape(array))

    def close(self) -> None:
        if self.dist.is_initialized():
            self.dist.destroy_process_group()

    def _call(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise WorldError(f"Rank {self.rank} lost its peers: {str(error).splitlines()[0]}") from error


class MpiWorld(World):
    """Ranks joined by MPI through mpi4py. Start them with `python -m mpi4py`, so that one error ends all."""

    backend = "mpi"

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        from mpi4py import MPI

        self.mpi = MPI
        self.comm = comm or MPI.COMM_WORLD
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(Place(self.comm.rank, self.comm.size, node.rank, node.size, "mpi"))
        node.Free()

    def barrier(self) -> None:
        self.comm.Barrier()

    def broadcast(self, value: Any, root: int = 0) -> Any:
        raw = bytearray(json.dumps(value).encode()) if self.rank == root else bytearray()
        length = np.array([len(raw)], np.int64)
        self.comm.Bcast(length, root)
        buffer = raw if self.rank == root else bytearray(int(length[0]))
        self.comm.Bcast(buffer, root)
        return json.loads(bytes(buffer))

    def gather(self, value: Any) -> list[Any]:
        raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.zeros(self.size, np.int64)
        self.comm.Allgather(np.array([raw.size], np.int64), lengths)
        everything = np.zeros(int(lengths.sum()), np.uint8)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.comm.Allgatherv(raw, [everything, (lengths, starts)])
        parts = [everything[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
        return [json.loads(part.tobytes()) for part in parts]

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        mine = np.ascontiguousarray(array)
        result = np.empty_like(mine)
        ops = {"sum": self.mpi.SUM, "max": self.mpi.MAX, "min": self.mpi.MIN}
        self.comm.Allreduce(mine, result, ops[operation])
        return result


def make_world(kind: str = "auto", *, timeout_s: float = 600.0) -> World:
    """The world of this process: `auto` takes what the environment says, `torch`, `mpi` or `single` insist.

    `auto` joins ranks by torch; `mpi` leaves torch alone. Raises WorldError.
    """
    place = place_from_environment()
    if kind == "mpi":
        return MpiWorld()
    if kind == "single" or (kind == "auto" and place.size == 1):
        return World()
    if kind in ("auto", "torch"):
        return TorchWorld(place, timeout_s)
    raise WorldError(f"There is no world '{kind}'; there is auto, torch, mpi and single.")


def _meeting_point(place: Place, timeout_s: float) -> Store:
    """The store through which ranks find each other.

    With MASTER_ADDR set (torchrun, a hand-written script) that is obeyed. Otherwise rank 0 listens on a port that the
    kernel chooses and writes host and port into a file of this attempt: two jobs on one node cannot collide.
    """
    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=timeout_s)
    rendezvous = os.environ.get(RENDEZVOUS)
    if rendezvous is None:
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise WorldError(
                f"{place.size} ranks started by {place.source} do not know where to meet: set MASTER_ADDR and "
                f"MASTER_PORT, or {RENDEZVOUS} to a file name on a folder that all of them see."
            )
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun keeps a store of its own at this address and says so.
        listens = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return TCPStore(host, port, place.size, listens, timeout=timeout, wait_for_workers=False)
    path = Path(rendezvous)
    if place.rank == 0:
        host = _own_address(place)
        store = TCPStore(host, 0, place.size, True, timeout=timeout, wait_for_workers=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"host": host, "port": store.port})
        return store
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise WorldError(f"Rank {place.rank} waited {timeout_s:.0f} s for {path}, which rank 0 did not write.")
        time.sleep(0.02)
    meeting = files.read_json(path)
    return TCPStore(meeting["host"], meeting["port"], place.size, False, timeout=timeout, wait_for_workers=False)


def _own_address(place: Place) -> str:
    # All ranks on this machine: nothing needs to listen beyond it.
    return "127.0.0.1" if place.local_size == place.size else socket.gethostname()
