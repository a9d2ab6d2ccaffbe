"""World: the ranks of one job, and the few things they do together. torch | mpi | single | fake.

Collectives carry JSON values and NumPy arrays, never pickles. Every collective says so: all ranks must call it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hpctool import rendezvous
from hpctool.errors import WorldError, from_record, to_record
from hpctool.place import Place, place_from_environment

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch.distributed import ProcessGroup

# A job that Slurm suspends must go on afterwards, so a collective waits for as long as that may take. Nothing is lost
# by it: a peer that died is noticed by its closed connection, a lost node by Slurm.
_COLLECTIVE_TIMEOUT = timedelta(hours=24)

Operation = Literal["sum", "max", "min"]
Array = npt.NDArray[Any]


class World:
    """The ranks of one job. This class is the world of one; the others override what needs company."""

    backend = "single"
    #: a rank that left alone must end without Python's own tidying up, which would wait for the others
    ends_at_once = False

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

    def together(self, action: Callable[[], Any]) -> list[Any]:
        """Do something on every rank and give the JSON results of all to all. Collective: all ranks must call it.

        Where it failed, each rank raises its own error, and the others what `errors.from_record` makes of the first
        rank's that has one: our own errors and OSError as what they are.
        """
        mine, own_error = _attempted(action)
        return _agreed(self.gather(mine), own_error)

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Do something on rank 0 only and give its JSON result to all; its error is raised on all. Collective."""
        mine, own_error = _attempted(action) if self.is_main else ({}, None)
        return _agreed([self.broadcast(mine)], own_error)[0]

    def apart(self) -> World | None:
        """The same ranks with a channel of their own, for collectives in another thread beside this world's.

        None where ranks are joined by something that threads cannot share (MPI, sockets). Collective: all ranks must
        call it. It lives as long as this world, and is not closed by itself.
        """
        return World(self.place) if type(self) is World else None

    def part(self) -> None:
        """Nobody is done before everybody is; then each rank may `close`. Collective: all ranks must call it."""
        self.barrier()

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

    def apart(self) -> World | None:
        return self


class TorchWorld(World):
    """Ranks joined by torch.distributed: gloo on CPUs; with GPUs nccl for tensors and gloo for everything else."""

    backend = "torch"

    def __init__(self, place: Place, meeting_file: Path | None = None, timeout_s: float = 600.0) -> None:
        """Meet the others at a file, or at MASTER_ADDR, within `timeout_s`. Collective. Raises WorldError."""
        super().__init__(place)
        import torch
        import torch.distributed as dist

        self.torch = torch
        self.dist = dist
        #: whose ranks this world joins; None is torch's default group
        self._group: ProcessGroup | None = None
        self._join_timeout = timedelta(seconds=timeout_s)
        self._has_parted = False
        self.device = torch.device("cpu")
        backend = "gloo"
        if torch.cuda.is_available():
            # With --gpus-per-task every rank sees one device of its own, number 0.
            self.device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
            backend = "cpu:gloo,cuda:nccl"
        try:
            store = rendezvous.meet(place, meeting_file, timeout_s)
            dist.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.size, timeout=self._join_timeout
            )
            self._joined(dist.group.WORLD)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise WorldError(f"Rank {place.rank} of {place.size} could not join the others: {reason}") from error

    def new_group(self) -> ProcessGroup:
        """A further group of all ranks, on CPUs: what it reduces does not queue behind gradients. Collective."""
        return self._joined(self.dist.new_group(backend="gloo", timeout=self._join_timeout))

    def _joined(self, group: ProcessGroup | None) -> ProcessGroup:
        assert group is not None, "all ranks are in it"
        # Only now: whoever dies while ranks connect has no connection yet that could close.
        group.set_timeout(_COLLECTIVE_TIMEOUT)
        return group

    def apart(self) -> World | None:
        twin = copy.copy(self)
        twin._group = self.new_group()
        return twin

    def barrier(self) -> None:
        self.reduce(np.zeros(1, np.int64))

    def broadcast(self, value: Any, root: int = 0) -> Any:
        raw = np.frombuffer(json.dumps(value).encode(), np.uint8) if self.rank == root else np.zeros(0, np.uint8)
        length = self.torch.tensor([raw.size], dtype=self.torch.int64)
        self._call(lambda: self.dist.broadcast(length, root, group=self._group))
        buffer = self.torch.zeros(int(length.item()), dtype=self.torch.uint8)
        if self.rank == root:
            buffer.copy_(self.torch.from_numpy(raw.copy()))
        self._call(lambda: self.dist.broadcast(buffer, root, group=self._group))
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
        self._call(lambda: self.dist.all_gather(everybody, mine, group=self._group))
        return [json.loads(t[:n].numpy().tobytes()) for t, n in zip(everybody, lengths.tolist(), strict=True)]

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        tensor = self.torch.from_numpy(_reducible(array))
        ops = {"sum": self.dist.ReduceOp.SUM, "max": self.dist.ReduceOp.MAX, "min": self.dist.ReduceOp.MIN}
        self._call(lambda: self.dist.all_reduce(tensor, ops[operation], group=self._group))
        return tensor.numpy()

    def part(self) -> None:
        super().part()
        self._has_parted = True

    def close(self) -> None:
        # NCCL's communicators are taken apart by all ranks together: one that failed would wait there for those that
        # wait for it in a sum, and nobody would see that it has failed.
        self.ends_at_once = self.device.type == "cuda" and not self._has_parted
        if self.dist.is_initialized() and not self.ends_at_once:
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

    `auto` joins ranks by torch; `mpi` leaves torch alone. `timeout_s` is how long ranks wait for each other to come.
    Raises WorldError.
    """
    place = place_from_environment()
    if kind == "mpi":
        return MpiWorld()
    if kind == "single" or (kind == "auto" and place.size == 1):
        return World()
    if kind in ("auto", "torch"):
        return TorchWorld(place, rendezvous.named_file(), timeout_s)
    raise WorldError(f"There is no world '{kind}'; there is auto, torch, mpi and single.")


def lost_peers(error: Exception, rank: int) -> WorldError | None:
    """What an error of torch's collectives means where a peer is gone; None where it is another error."""
    of_torch = any(kind.__module__.startswith("torch") and "Dist" in kind.__name__ for kind in type(error).__mro__)
    text = str(error)
    if of_torch or (isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)):
        return WorldError(f"Rank {rank} lost its peers: {text.splitlines()[0]}")
    return None


def _attempted(action: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    """What the other ranks are told of an action, and its error if it failed; a result that is not JSON is one."""
    try:
        return {"result": _through_json(action())}, None
    except Exception as error:
        return {"error": to_record(error)}, error


def _agreed(answers: list[dict[str, Any]], own_error: Exception | None) -> list[Any]:
    if own_error is not None:
        raise own_error
    for rank, answer in enumerate(answers):
        if "error" in answer:
            raise from_record(answer["error"], rank)
    return [answer["result"] for answer in answers]


def _through_json(value: Any) -> Any:
    # Also where nothing travels, so that code tested on one rank is not surprised by lists for tuples on two.
    return json.loads(json.dumps(value))


def _reducible(array: Array) -> Array:
    mine = np.array(array, copy=True, order="C")
    if mine.dtype.name not in ("uint8", "int32", "int64", "float32", "float64"):
        raise TypeError(f"reduce takes uint8, int32, int64, float32 and float64 arrays, not {mine.dtype.name}")
    return mine
