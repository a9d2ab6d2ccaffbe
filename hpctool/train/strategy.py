"""How ranks share the work of a step: alone, DDP, FSDP2, or gradients averaged as they are. One class each.

`parallel=ddp`   every rank holds the whole model; gradients are averaged while the backward pass goes on. With an
                 optimizer for each of several parts (a GAN) they are averaged behind it, in one order for ever.
`parallel=fsdp`  every rank holds a slice of each parameter, of its gradient and of the optimizer's state, and gets the
                 rest of a block only while it computes with it.

All of them give the same bits in every attempt with the same ranks. DDP needs help for it: it sorts its gradient
buckets anew after the first pass of a process, by the order in which gradients arrived. From three ranks on, other
buckets mean that the ring adds in another order, so a resumed process, which would do its first step with unsorted
buckets, would differ in the last bit from one that never stopped. Hence `num_discarded`: every attempt, the first one
too, makes two passes before its first step whose effects are undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from hpctool.errors import ConfigError
from hpctool.train.schema import Parallel
from hpctool.world import World

#: Gradients of so many numbers at most are small.
_SMALL = 16384
_NOTHING = nullcontext()


class Alone:
    """One rank: there is nothing to share. The others override what needs company."""

    #: passes at the beginning of each attempt that are undone afterwards
    num_discarded = 0
    #: a forward pass is a collective: all ranks must make as many, also in an evaluation
    in_step = False
    #: over which ranks parameters are sharded; None where every rank has all of them
    mesh: DeviceMesh | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: what the task calls in training
        self.forward: Callable[..., Any] = model

    def begin_step(self) -> None:
        """Before the first pass of a step. Collective."""

    def averaging(self, now: bool) -> AbstractContextManager[Any]:
        """Around a forward and a backward pass: average gradients over the ranks now, or only add to one's own."""
        return _NOTHING

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """After the last backward pass of a step: `parameters` have their averaged gradients. Collective."""

    def norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm of all gradients together, the same on all ranks. Collective."""
        # As torch.nn.utils.get_total_norm, but small gradients are measured together: a call for each costs more than
        # their copy, on a CPU some 2 µs, and networks have many of them (norms, biases).
        small: list[Tensor] = []
        large: list[Tensor] = []
        for p in parameters:
            if (grad := p.grad) is not None:
                (small if grad.numel() <= _SMALL else large).append(grad)
        if small:
            large.append(_flatten_dense_tensors(small))  # type: ignore[no-untyped-call]
        if not large:
            return torch.zeros(())
        norms = large[0] if len(large) == 1 else torch.stack(torch._foreach_norm(large))
        norm: Tensor = torch.linalg.vector_norm(norms)
        return norm

    def shard(self, module: nn.Module) -> None:
        """Lay out another module (a moving average of the model) like the model."""

    def evaluated(self, module: nn.Module) -> None:
        """After forward passes that no backward pass follows."""


class Replicated(Alone):
    """DDP."""

    num_discarded = 2

    def __init__(self, model: nn.Module, device: torch.device, cfg: Parallel) -> None:
        super().__init__(model)
        self.wrapper = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            bucket_cap_mb=cfg.bucket_mb,
            find_unused_parameters=bool(cfg.find_unused_parameters),
        )
        self.forward = self.wrapper

    def averaging(self, now: bool) -> AbstractContextManager[Any]:
        return _NOTHING if now else self.wrapper.no_sync()


class Averaged(Alone):
    """One reduction behind the backward pass, over gradients in the order of the parameters."""

    def __init__(self, model: nn.Module, world: World) -> None:
        super().__init__(model)
        self.world = world

    def begin_step(self) -> None:
        share_buffers(self.model, self.world)

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            alike = [p for p in parameters if p.dtype == dtype]
            # What has no gradient on this rank may have one on another.
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            dist.all_reduce(flat)
            flat /= self.world.size
            for p, part in zip(alike, torch.split(flat, [p.numel() for p in alike]), strict=True):
                p.grad = part.view_as(p)


class Sharded(Alone):
    """FSDP2: each block, and what is in none, is sharded over all ranks."""

    in_step = True

    def __init__(self, model: nn.Module, device: torch.device, world: World, cfg: Parallel) -> None:
        super().__init__(model)
        self.world, self.cfg = world, cfg
        self.mesh = init_device_mesh(device.type, (world.size,))
        self.shard(model)

    def shard(self, module: nn.Module) -> None:
        for block in blocks(module, self.cfg.blocks):
            fully_shard(block, mesh=self.mesh, reshard_after_forward=self.cfg.reshard_after_forward)
        fully_shard(module, mesh=self.mesh, reshard_after_forward=self.cfg.reshard_after_forward)

    def evaluated(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    def begin_step(self) -> None:
        # As DDP does: batch norm has seen other samples on each rank.
        share_buffers(self.model, self.world)

    def averaging(self, now: bool) -> AbstractContextManager[Any]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(now)
        return _NOTHING

    def norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def make_strategy(model: nn.Module, device: torch.device, world: World, cfg: Parallel, num_parts: int = 1) -> Alone:
    """What `parallel` asks for, on the ranks that there are. Collective. Raises ConfigError."""
    if world.size == 1:
        return Alone(model)
    if cfg.kind == "fsdp":
        return Sharded(model, device, world, cfg)
    return Replicated(model, device, cfg) if num_parts == 1 else Averaged(model, world)


def blocks(model: nn.Module, class_names: Sequence[str] | None) -> list[nn.Module]:
    """What is sharded apart: modules of these classes, or where none are named the layers of the model's lists.

    Raises ConfigError where the model has no module of a class.
    """
    if class_names is None:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and m is not model]
        inside = {id(inner) for outer in lists for part in outer for inner in part.modules()}
        outermost = [one for one in lists if id(one) not in inside]
        return [part for one in outermost for part in one if any(True for _ in part.parameters())]
    there = {type(m).__name__ for m in model.modules()}
    for name in class_names:
        if name not in there:
            raise ConfigError("parallel.blocks", f"the model has no module of the class '{name}'.", sorted(there))
    return [m for m in model.modules() if type(m).__name__ in class_names and m is not model]


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every rank the buffers of rank 0, as DDP does before each forward pass. Collective.

    Needed before a state is saved, evaluated or compared: batch norm has seen other samples on each rank.
    """
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, laid out over the ranks as `like` is, if that is sharded."""
    if isinstance(like, DTensor) and not isinstance(value, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value
