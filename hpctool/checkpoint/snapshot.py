"""What one rank writes of a checkpoint: a copy of its part of the state, which later steps cannot change.

state.json                structure and scalars of the state, and of each tensor: dtype, shape, where it lies (rank 0)
tensors-00000.safetensors this rank's share of the replicated tensors; shares are split by size
shards-00000.json         which parts of sharded tensors this rank has: offsets and shape (format 2)
shards-00000.safetensors  and these parts
rank-00000.json           structure and scalars of the rank's own state (random generators …), if it has one
rank-00000.safetensors    and its tensors

Format 1 had no sharded tensors; everything else is the same.
"""

from __future__ import annotations

import functools
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpctool import files
from hpctool.checkpoint import sharded
from hpctool.checkpoint.buffers import Buffers
from hpctool.checkpoint.flatten import Flat, flatten, unflatten
from hpctool.checkpoint.sharded import Box, Piece
from hpctool.checkpoint.tensorfile import Image, Readers
from hpctool.checkpoint.tensors import Spec, is_sharded, spec_of
from hpctool.errors import CorruptError, InputError, NewerFormat

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

FORMAT = 2
STATE = "state.json"

#: name, dtype, shape, offsets (of a part) and SHA-256 of a tensor's values
Row = list[Any]


@dataclass
class Snapshot:
    """The files of one rank. Tensors are copied; what is JSON is put into words only when it is written."""

    images: dict[str, Image] = field(default_factory=dict)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: dtype, shape and home of each tensor of the state: all ranks must agree in it
    table: dict[str, Any] = field(default_factory=dict)
    #: which parts of sharded tensors lie in this rank's file
    boxes: dict[str, Box] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """About how much will be written."""
        return sum(image.size_bytes for image in self.images.values())

    @property
    def table_digest(self) -> str:
        return files.sha256_bytes(files.canonical_json(self.table))

    def contents(self) -> Iterator[tuple[str, bytes | memoryview]]:
        """The bytes of each file by name."""
        for name, document in self.documents.items():
            # Not canonical: the order of keys is part of the state.
            yield name, json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
        for name, image in self.images.items():
            yield name, image.bytes

    def rows(self, prefix: str) -> list[Row]:
        """The digests of the tensors that this rank writes of `prefix` (a key of the state; all of it if empty)."""
        found: list[Row] = []
        for name, row in sorted(self.table.items()):
            values = self.values(name)
            if values is None or (prefix and name.split("/")[0] != prefix):
                continue
            offsets = list(self.boxes[name].offsets) if name in self.boxes else None
            found.append([name, row["dtype"], list(row["shape"]), offsets, files.sha256_bytes(values)])
        return found

    def values(self, name: str) -> memoryview | None:
        """The bytes of a tensor of the state, or of this rank's part; None where it is not this rank that writes it."""
        row = self.table.get(name, {"file": ""})
        home = row["file"] if "file" in row else next((n for n in self.images if n.startswith("shards-")), "")
        image = self.images.get(home)
        return image.values(name) if image is not None and image.holds(name) else None


def take(state: Any, per_rank: Any, rank: int, size: int, buffers: Buffers | None = None) -> Snapshot:
    """Copy what this rank has to write into `buffers`. Raises InputError that names what cannot be stored."""
    taken = laid_out(state, per_rank, rank, size)
    buffers = buffers or Buffers()
    for name, image in taken.images.items():
        image.fill(buffers.take(name, image.size_bytes))
    return taken


def laid_out(state: Any, per_rank: Any, rank: int, size: int) -> Snapshot:
    """The same before anything is copied: which files there will be, and how large. Raises InputError."""
    flat = flatten(state)
    shares, table = _divided(tuple((name, *_laid(one)) for name, one in flat.tensors.items()), size)
    taken = Snapshot(table=table)
    if rank == 0:
        taken.documents[STATE] = {"format": FORMAT, "structure": flat.structure, "tensors": table}
    _add_tensors(taken, f"tensors-{rank:05d}.safetensors", {name: flat.tensors[name] for name in shares[rank]})
    _add_shards(taken, f"shards-{rank:05d}", {n: t for n, t in flat.tensors.items() if is_sharded(t)})
    if per_rank is not None:
        _add_own(taken, rank, per_rank)
    return taken


def own_state(rank: int) -> str:
    """The name of the file that holds what only this rank has."""
    return f"rank-{rank:05d}.json"


def split(sizes_bytes: Mapping[str, int], num_ranks: int) -> list[list[str]]:
    """Names for each rank, so that all have about the same number of bytes; the same answer on every rank."""
    shares: list[list[str]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for name in sorted(sizes_bytes, key=lambda name: (-sizes_bytes[name], name)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(name)
        heapq.heappush(loads, (load + sizes_bytes[name], rank))
    return shares


def read(folder: Path, name: str, mesh: DeviceMesh | None = None) -> Any:
    """The state that `state.json`, or a rank's own file, describes.

    Sharded tensors come whole, or laid out over `mesh`: then only this rank's part of each is read.
    Raises CorruptError, NewerFormat, OSError.
    """
    path = folder / name
    document = _document(path)
    flat = Flat(document["structure"])
    pieces = _pieces(folder) if any("file" not in row for row in document["tensors"].values()) else {}
    with Readers(folder) as opened:
        for tensor, row in document["tensors"].items():
            spec = Spec(row["kind"], row["dtype"], tuple(row["shape"]))
            if "file" in row:
                flat.tensors[tensor] = opened.tensor(row["file"], tensor, spec)
            elif mesh is None:
                flat.tensors[tensor] = sharded.read_whole(opened, tensor, spec, pieces.get(tensor, []))
            else:
                placed = row["placements"]
                flat.tensors[tensor] = sharded.read_sharded(opened, tensor, spec, pieces.get(tensor, []), placed, mesh)
    try:
        return unflatten(flat)
    except (KeyError, ValueError) as error:
        raise CorruptError(path, f"its structure does not fit ({error})") from error


def _document(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = files.read_json(path)
    if document["format"] > FORMAT:
        raise NewerFormat(path, "checkpoint", document["format"], FORMAT)
    return document


def _pieces(folder: Path) -> dict[str, list[Piece]]:
    """Who has which parts of sharded tensors."""
    found: dict[str, list[Piece]] = {}
    for path in sorted(folder.glob("shards-*.json")):
        for name, place in _document(path)["tensors"].items():
            box = Box(tuple(place["offsets"]), tuple(place["shape"]))
            found.setdefault(name, []).append(Piece(f"{path.stem}.safetensors", box))
    return found


def _laid(tensor: Any) -> tuple[Spec, int, tuple[str, ...] | None]:
    """Its spec, its bytes, and how it is placed if it is sharded."""
    return spec_of(tensor), int(tensor.nbytes), tuple(sharded.placements_of(tensor)) if is_sharded(tensor) else None


# The same from save to save, and while it is found the training waits.
@functools.lru_cache(maxsize=4)
def _divided(
    tensors: tuple[tuple[str, Spec, int, tuple[str, ...] | None], ...], num_ranks: int
) -> tuple[list[list[str]], dict[str, Any]]:
    """What each rank writes of the replicated ones of these tensors (name, `_laid`), and the table of all."""
    shares = split({name: size_bytes for name, _, size_bytes, placements in tensors if placements is None}, num_ranks)
    homes = {name: f"tensors-{owner:05d}.safetensors" for owner, share in enumerate(shares) for name in share}
    return shares, {name: _row(spec, homes.get(name), placements) for name, spec, _, placements in tensors}


def _row(spec: Spec, home: str | None, placements: Sequence[str] | None = None) -> dict[str, Any]:
    return {**spec._asdict(), **({"file": home} if placements is None else {"placements": placements})}


def _add_tensors(taken: Snapshot, name: str, tensors: Mapping[str, Any]) -> None:
    if tensors:
        taken.images[name] = Image(tensors)


def _add_shards(taken: Snapshot, stem: str, tensors: Mapping[str, Any]) -> None:
    boxes = {name: sharded.own_box(tensor) for name, tensor in tensors.items()}
    taken.boxes = {name: box for name, box in boxes.items() if box is not None}
    if taken.boxes:
        places = {name: asdict(box) for name, box in taken.boxes.items()}
        taken.documents[f"{stem}.json"] = {"format": FORMAT, "tensors": places}
        _add_tensors(taken, f"{stem}.safetensors", {name: tensors[name].to_local() for name in taken.boxes})


def _add_own(taken: Snapshot, rank: int, per_rank: Any) -> None:
    own, home = flatten(per_rank), f"rank-{rank:05d}.safetensors"
    for name, tensor in own.tensors.items():
        if is_sharded(tensor):
            raise InputError(f"The state at '{name}' is sharded over the ranks, so it is no rank's own: not per_rank.")
    table = {name: _row(spec_of(tensor), home) for name, tensor in own.tensors.items()}
    taken.documents[own_state(rank)] = {"format": FORMAT, "structure": own.structure, "tensors": table}
    _add_tensors(taken, home, own.tensors)
