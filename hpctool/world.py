"""World: who am I among the ranks, and the few things ranks do together. torch | mpi | single | fake.

Collectives carry JSON values and NumPy arrays, never pickles. Every collective says so: all ranks must call it.
"""

from __future__ import annotations

import contextlib
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
from hpctool.errors import WorldError, from_record, listing, to_record

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch._C._distributed_c10d import Store, TCPStore

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
    allocation changes nothing. Raises WorldError on values that make no sense.
    """
    said = {source: names for source, names in _LAUNCHERS.items() if names[0] in environ and names[1] in environ}
    # srun with PMI sets PMI_RANK too, but only MPICH's own launcher says who is where on a node.
    for source, names in sorted(said.items(), key=lambda item: item[1][2] not in environ):
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
        return _through_json(value)

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in order of rank, on every rank. Collective: all ranks must call it."""
        return [_through_json(value)]

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        """Elementwise sum, max or min over the ranks, on every rank; shape and dtype stay. Collective.

        Takes uint8, int32, int64, float32 and float64, which every kind of world can add. Raises TypeError.
        """
        return _reducible(array)

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Do something on rank 0 only and give its JSON result to all; its error is raised on all. Collective.

        The others raise what `errors.from_record` makes of it: our own errors and OSError as what they are.
        """
        answer: dict[str, Any] = {}
        own_error: Exception | None = None
        if self.is_main:
            try:
                answer = _through_json({"value": action()})
            except Exception as error:
                own_error = error
                answer = {"error": to_record(error)}
        answer = self.broadcast(answer)
        if own_error is not None:
            raise own_error
        if "error" in answer:
            raise from_record(answer["error"], rank=0)
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
        return [_through_json(value) for _ in range(self.size)]

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        mine = _reducible(array)
        return np.asarray(mine * mine.dtype.type(self.size) if operation == "sum" else mine)

    def on_main(self, action: Callable[[], Any]) -> Any:
        # There is no real rank 0 to ask: what it would do is done here.
        return _through_json(action())


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
        timeout = timedelta(seconds=timeout_s)
        try:
            store = _meeting_point(place, timeout_s)
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timeout)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise WorldError(f"Rank {place.rank} of {place.size} could not join the others: {reason}") from error

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
        tensor = self.torch.from_numpy(_reducible(array))
        ops = {"sum": self.dist.ReduceOp.SUM, "max": self.dist.ReduceOp.MAX, "min": self.dist.ReduceOp.MIN}
        self._call(lambda: self.dist.all_reduce(tensor, ops[operation]))
        return tensor.numpy()

    def close(self) -> None:
        if self.dist.is_initialized():
            self.dist.destroy_process_group()

    def _call(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise WorldError(
                f"Rank {self.rank} lost its peers: {str(error).splitlines()[0]}. Their own logs say why they ended."
            ) from error


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
        mine = _reducible(array)
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


def _through_json(value: Any) -> Any:
    # Also where nothing travels, so that code tested on one rank is not surprised by lists for tuples on two.
    return json.loads(json.dumps(value))


def _reducible(array: Array) -> Array:
    mine = np.array(array, copy=True, order="C")
    if mine.dtype.name not in ("uint8", "int32", "int64", "float32", "float64"):
        raise TypeError(f"reduce takes uint8, int32, int64, float32 and float64 arrays, not {mine.dtype.name}")
    return mine


def _meeting_point(place: Place, timeout_s: float) -> Store:
    """The store through which ranks find each other; returned when all of them are there. Raises WorldError.

    With MASTER_ADDR set (torchrun, a hand-written script) that is obeyed, unless there is a rendezvous file: then
    rank 0 listens on a port that the kernel chooses and writes it there: two jobs on one node cannot collide.
    """
    from torch._C._distributed_c10d import PrefixStore

    deadline = time.monotonic() + timeout_s
    rendezvous = os.environ.get(RENDEZVOUS)
    if rendezvous is not None:
        store = _store_of_file(place, Path(rendezvous), timeout_s)
    elif "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun keeps a store of its own at this address and says so.
        listens = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _tcp_store(place, host, port, listens, timeout_s)
    else:
        raise WorldError(
            f"{place.size} ranks started by {place.source} do not know where to meet: set MASTER_ADDR and "
            f"MASTER_PORT, or {RENDEZVOUS} to a file name on a folder that all of them see."
        )
    # torchrun's store outlives a restart of the ranks.
    store = PrefixStore(f"hpctool/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    here = [f"here/{rank}" for rank in range(place.size)]
    store.set(here[place.rank], "")
    try:
        store.wait(here, timedelta(seconds=max(deadline - time.monotonic(), 1.0)))
    except RuntimeError as error:
        absent = [rank for rank in range(place.size) if not store.check([here[rank]])]
        raise WorldError(
            f"Rank {place.rank} of {place.size} waited {timeout_s:.0f} s for rank {listing(map(str, absent))}. "
            "Look at the log of the missing one, or whether its node can reach this one."
        ) from error
    return store


def _store_of_file(place: Place, path: Path, timeout_s: float) -> Store:
    if place.rank == 0:
        store = _tcp_store(place, _own_address(place), 0, True, timeout_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"host": store.host, "port": store.port})
        return store
    deadline, wait_s = time.monotonic() + timeout_s, 0.02
    while True:
        with contextlib.suppress(OSError):
            # A network file system remembers that the file was missing; listing its folder makes it look again.
            os.listdir(path.parent)
            meeting = files.read_json(path)
            return _tcp_store(place, meeting["host"], meeting["port"], False, timeout_s)
        if time.monotonic() > deadline:
            raise WorldError(f"Rank {place.rank} waited {timeout_s:.0f} s for {path}, which rank 0 did not write.")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 0.5)


def _tcp_store(place: Place, host: str, port: int, listens: bool, timeout_s: float) -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, place.size, listens, timeout=timeout, wait_for_workers=False)


def _own_address(place: Place) -> str:
    # All ranks on this machine: nothing needs to listen beyond it.
    return "127.0.0.1" if place.local_size == place.size else socket.gethostname()
