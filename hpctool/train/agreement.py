"""What the ranks agree on at step boundaries, and what shows that they are no longer alike.

One small reduction per step carries what any rank wishes and what must be the same on all of them: the step, the
position in the samples, the learning rate, and every so many steps the bits of the parameters. It is posted at one
boundary and read at the next, so no rank waits for it; all ranks read the same, and so act alike at the same step.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hpctool.checkpoint.snapshot import Snapshot
from hpctool.checkpoint.tensors import Bytes, as_bytes, is_sharded
from hpctool.errors import DesyncError, listing
from hpctool.world import TorchWorld, World

#: What a difference may come from, by what differs.
REASONS = {
    "step": "a rank has taken another number of steps, as a loop does that skips or stops on one rank only",
    "consumed": "the ranks no longer take their parts of the same batches, as where code differs between nodes",
    "lr": "the learning rate follows something that only one rank knows, such as its own loss or clock",
    "params": "a parameter was changed on one rank only (in a forward pass, a hook, after the reduction), or the "
    "memory or device of that rank errs",
}


#: weighs the bytes behind the last word of 64 bits
_OF_THE_REST = 0x9E3779B1
#: A save looks at one of so many parts of a tensor, and at the one behind it the next time: a look at all would hold
#: up the training longer than the copy does, the more ranks share in that.
_PARTS = 8
#: words of 64 bits, so 32 KB: what is smaller is looked at as a whole
_LARGE = 4096

#: name of a tensor → a number that changes with any of its bits
Bits = dict[str, int]


class Wishes(NamedTuple):
    """What at least one rank wanted at a step boundary."""

    stop: bool = False
    save: bool = False
    #: the save under way has failed, which other ranks may not know yet
    failed: bool = False


_NUM_WISHES = len(Wishes._fields)


class Position(NamedTuple):
    """What must be the same on all ranks after a step. `params`: `bits_of` the parameters, 0 where not looked at."""

    step: int = 0
    consumed: int = 0
    lr: float = 0.0
    params: int = 0

    def numbers(self) -> list[int]:
        """As integers that differ when the values do."""
        return [self.step, self.consumed, *struct.unpack("<q", struct.pack("<d", self.lr)), self.params]


class Agreement:
    """The reduction of one run, whose ranks all train `model`.

    Its bits are compared with every `compare_every`-th step, and a part of them with each save: all within eight saves.
    None: never.
    """

    def __init__(self, world: World, model: nn.Module, compare_every: int | None) -> None:
        self._world, self._model, self._every = world, model, compare_every
        self._group: dist.ProcessGroup | None = None
        if isinstance(world, TorchWorld):
            self._group = world.new_group()
        self._position = Position()
        self._bits: Bits = {}
        self._num_checks = 0
        self._posted = _vector(Wishes(), self._position)
        self._pending: dist.Work | None = None
        self._alone = Wishes()  # of the boundary before, where there is one rank

    def exchange(self, wishes: Wishes, position: Position, *, saves: bool = False) -> Wishes:
        """Post what this rank wishes and where it is; what all ranks posted at the boundary before.

        `saves`: a save follows in any case, which compares the parameters itself (`check`): its own are copied anyway.
        Collective: all ranks must call it. Raises DesyncError, on all ranks alike, where they were not alike then.
        """
        if self._group is None:
            alone, self._alone = self._alone, wishes
            return alone
        self.finish()
        posted, before, bits = self._posted.tolist(), self._position, self._bits
        self._position, self._bits = position, {}
        if self._every is not None and position.step % self._every == 0 and not saves:
            self._bits = bits_of(self._model.named_parameters())
            self._position = position._replace(params=combined(self._bits))
        self._posted = _vector(wishes, self._position)
        if not _alike(posted):
            raise _difference(self._world, before, bits)
        self._pending = dist.all_reduce(self._posted, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return Wishes(*map(bool, posted[:_NUM_WISHES]))

    def check(self, position: Position, key: str = "model") -> Check | None:
        """What compares this position, and the parameters as they are now, beside the next steps; for a checkpoint.

        `key`: where the state that is saved has the model's. None: there is nobody to compare with.
        """
        if self._group is None:
            return None
        parameters = self._model.named_parameters() if self._every is not None else []
        tensors = {name: p.detach() for name, p in parameters if not is_sharded(p)}
        # Where this boundary's exchange has looked at them already, that is still true.
        known = self._bits if position.step == self._position.step else {}
        is_due = self._every is not None and position.step % self._every == 0
        part = None if is_due else self._num_checks % _PARTS
        self._num_checks += 1
        return Check(position, key, tensors, dict(known), part)

    def finish(self) -> None:
        """Wait for what is posted; also before the ranks part."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None


class Check:
    """Compares what is saved with what the other ranks have, before anything is built upon it (saving.Check).

    `part`: which eighth of large parameters; None: all of them.
    """

    def __init__(
        self, position: Position, key: str, tensors: dict[str, torch.Tensor], known: Bits, part: int | None = None
    ) -> None:
        self._position, self._key, self._tensors, self._bits, self._part = position, key, tensors, known, part
        self._copies: dict[str, memoryview] = {}

    def copied(self, copy: Snapshot) -> None:
        """Look at the parameters that other ranks save, which the next step changes; this rank's own are copied."""
        if not self._bits:
            self._copies = {
                name: at for name in self._tensors if (at := copy.values(f"{self._key}/{name}")) is not None
            }
            others = ((name, one) for name, one in self._tensors.items() if name not in self._copies)
            self._bits = bits_of(others, self._part)

    def compare(self, world: World) -> None:
        """Sum up the copies and compare. Collective. Raises DesyncError, on all ranks alike."""
        own = {name: _sum_of_bytes(np.frombuffer(at, np.uint8), self._part) for name, at in self._copies.items()}
        summed = self._bits | own
        bits = {name: summed[name] for name in self._tensors if name in summed}
        position = self._position._replace(params=combined(bits))
        if len(set(map(tuple, world.gather(position)))) > 1:
            raise _difference(world, position, bits)


def _alike(reduced: list[int]) -> bool:
    """`reduced` is the largest of each number and of its opposite over the ranks: alike, they are opposites."""
    numbers = reduced[_NUM_WISHES:]
    half = len(numbers) // 2
    return all(high == -low for high, low in zip(numbers[:half], numbers[half:], strict=True))


def _difference(world: World, position: Position, bits: Bits) -> DesyncError:
    """Who differs in what. Collective: all ranks have seen that they do."""
    told = world.gather(position._asdict())
    found = {key: [one[key] for one in told] for key in told[0]}
    differing = {key: values for key, values in found.items() if len(set(values)) > 1}
    parts = [f"{key} is {_sides(values, key != 'params')}" for key, values in differing.items()]
    if "params" in differing:
        parts[-1] = f"the parameters differ: {_differing_tensors(world.gather(bits))}"
    return DesyncError(min(found["step"]), differing, "; ".join(parts), "; ".join(REASONS[key] for key in differing))


def _differing_tensors(told: list[Bits]) -> str:
    names = [name for name in told[0] if len({one.get(name) for one in told}) > 1]
    if not names:
        return "which ones cannot be seen any more"
    return f"{listing(names, 3)}, {_sides([one.get(names[0], 0) for one in told], shown=False)}"


def bits_of(tensors: Iterable[tuple[str, torch.Tensor]], part: int | None = None) -> Bits:
    """A number for each tensor that changes with any of its bits, as rank after rank has it; sharded ones are left out.

    A sum of its 64-bit words: one pass over the memory, some 0.1 s for a GB on a CPU core. With a `part` (0 to 7) only
    that eighth of a large tensor counts.
    """
    there = {name: one for name, one in tensors if not is_sharded(one)}
    on_device = {name: _sum_on_device(one, part) for name, one in there.items() if one.device.type != "cpu"}
    # A GPU is asked once: each question waits until it has done all that it was given.
    sums = dict(zip(on_device, torch.stack([*on_device.values()]).tolist(), strict=True)) if on_device else {}
    return {name: sums[name] if name in sums else _sum_of_bytes(as_bytes(one), part) for name, one in there.items()}


def combined(bits: Bits) -> int:
    """One number for all of them, which fits into 62 bits and depends on their order."""
    total = 0
    for value in bits.values():
        total = (total * 1_000_003 + value) % (1 << 62)
    return total


def _sum_on_device(tensor: torch.Tensor, part: int | None) -> torch.Tensor:
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    whole = raw.numel() // 8 * 8
    if raw.storage_offset() % 8:
        raw = raw.clone()
    total: torch.Tensor = _part(raw[:whole].view(torch.int64), part).sum() + raw[whole:].sum() * _OF_THE_REST
    return total


def _sum_of_bytes(raw: Bytes, part: int | None) -> int:
    """The same of bytes on the host, uint8 (size in bytes,), wherever they begin."""
    whole = raw.size // 8 * 8
    total = _part(raw[:whole].view(np.int64), part).sum()
    if whole < raw.size:
        with np.errstate(over="ignore"):
            total += np.int64(int(raw[whole:].sum()) * _OF_THE_REST)
    return int(total)


def _part(words: Any, part: int | None) -> Any:
    """Of a tensor or an array, int64 (count,): all words, or those of the part."""
    if part is None or len(words) < _LARGE:
        return words
    return words[len(words) * part // _PARTS : len(words) * (part + 1) // _PARTS]


def _vector(wishes: Wishes, position: Position) -> torch.Tensor:
    numbers = position.numbers()
    return torch.tensor([*wishes, *numbers, *(-one for one in numbers)], dtype=torch.int64)


def _sides(values: list[Any], shown: bool = True) -> str:
    """`0.1 on rank 2 and 0.01 on ranks 0, 1`: those in the minority first."""
    counts = Counter(values)
    sides = sorted(counts, key=lambda value: counts[value])
    ranks = {side: [str(rank) for rank, value in enumerate(values) if value == side] for side in sides}
    words = {side: f"rank{'s' if len(ranks[side]) > 1 else ''} {listing(ranks[side])}" for side in sides}
    if shown:
        return " and ".join(f"{side} on {words[side]}" for side in sides[:4])
    return f"{' and '.join(words[side] for side in sides[:-1])} against {words[sides[-1]]}"
