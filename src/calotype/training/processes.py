"""Several processes that train one model: each takes batches of its own, and their gradients are averaged.

``torchrun`` and ``accelerate launch`` start them, on one machine or several, and say in the environment which is which.
So N processes that accumulate A batches take the steps of one that accumulates N x A of the same batches.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from calotype.core.errors import InputError

_BUCKET = 1 << 25
"""Numbers that are averaged in one message."""


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; one alone unless a launcher started more."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that speaks and writes files."""
        return self.rank == 0

    def voice(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say`` in the main process, silence in the others."""
        return say if self.main else lambda text: None

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.count > 1:
            dist.barrier(group=_control())

    def latest(self, seconds: float) -> float:
        """The largest of the processes' clocks, so that they decide alike by time."""
        return max(self.gathered(seconds))

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of the processes."""
        return any(self.gathered(flag))

    def gathered(self, value: Any) -> list[Any]:
        """The processes' values in their order, in each of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=_control())
        return found

    def averaged(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over the processes of numbers that all of them have."""
        every = self.gathered(dict(values))
        return {name: sum(one[name] for one in every) / self.count for name in values}

    def share(self, module: nn.Module) -> None:
        """Give all processes the main one's trained parameters; those that are spread over them stay."""
        for parameter in module.parameters() if self.count > 1 else ():
            if parameter.requires_grad and not is_spread(parameter):
                dist.broadcast(parameter.detach(), 0)

    def diverge(self) -> None:
        """From here on, random numbers of their own in all processes."""
        if self.rank:
            torch.manual_seed(torch.initial_seed() + self.rank)

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; one that none of them has stays away.

        Those of parameters that are spread over the processes are means already.
        """
        parameters = [parameter for parameter in parameters if not is_spread(parameter)]
        if self.count == 1 or not parameters:
            return
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(has, dist.ReduceOp.MAX, group=_control())
        gradients = []
        for parameter, there in zip(parameters, has.tolist(), strict=True):
            if there:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for part in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in part])
            dist.all_reduce(flat)
            pieces = (flat / self.count).split([gradient.numel() for gradient in part])
            torch._foreach_copy_(
                part, [piece.view_as(gradient) for piece, gradient in zip(pieces, part, strict=True)]
            )


def current() -> Processes:
    """The processes of this training."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def join(device: torch.device) -> torch.device:
    """Meet the other processes that a launcher started, if it did; returns this one's device.

    Each process of a machine has a GPU of its own. Raises ``InputError`` if there are fewer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    if current().count == 1 or device.type != "cuda":
        return device
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise InputError(
            f"This machine has {there} GPUs, and process {number + 1} has none: start fewer processes."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


_groups: list[Any] = []


def _control() -> Any:
    """The group for words between the processes, which does not wait for what is queued on GPUs."""
    if not _groups:
        _groups.append(dist.new_group(backend="gloo"))
    return _groups[0]


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether this process holds a part of the tensor alone (``sharding.py``)."""
    if current().count == 1:  # importing what follows takes a while
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors in messages of one type, in their order."""
    parts: list[list[torch.Tensor]] = []
    room = 0
    for tensor in tensors:
        if not parts or tensor.numel() > room or tensor.dtype != parts[-1][0].dtype:
            parts.append([])
            room = _BUCKET
        parts[-1].append(tensor)
        room -= tensor.numel()
    return parts
