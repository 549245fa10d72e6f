"""Weights, gradients and averages spread over the processes (FSDP), for models that one GPU cannot train.

Each process holds a part of every tensor, and a block's tensors are brought together while it computes. What is saved
is whole, in the same files as without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.training.processes import current, is_spread


def shard(objective: nn.Module, device: torch.device) -> None:
    """Spread the networks of an objective, block by block. ``InputError`` for one process alone.

    Blocks are the members of a network's lists; what is beside them is one more.
    """
    if current().count == 1:
        raise InputError(
            "fsdp spreads weights over several processes, and this is one alone: start more with torchrun or "
            "accelerate launch."
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (current().count,))
    for network in objective.children():
        if not any(parameter.requires_grad for parameter in network.parameters()):
            continue
        for child in network.children():
            for block in child if isinstance(child, nn.ModuleList) else ():
                fully_shard(block, mesh=mesh)
        # kept whole after a sheet it would not see that the average's weights were taken out again
        fully_shard(network, mesh=mesh, reshard_after_forward=True)


def whole(values: Any) -> Any:
    """The same mappings and lists with every spread tensor whole, on the CPU; all processes ask for it together."""

    def change(tensor: Any) -> Any:
        return tensor.full_tensor().cpu() if is_spread(tensor) else tensor

    return _each(values, change)


def spread_like(value: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, if the example is spread; the tensor itself otherwise."""
    if not is_spread(example) or value.shape != example.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = example
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def bring_together(objective: nn.Module) -> None:
    """Make the objective's networks plain again, to be saved: all weights whole on the main process's CPU.

    Nothing can be computed with them in the other processes afterwards.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in objective.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if is_spread(parameter):
                full = whole(parameter.detach())
                setattr(
                    module, name, nn.Parameter(full if current().main else full[:0], parameter.requires_grad)
                )
        if isinstance(module, FSDPModule):
            # the class as it was, whose name is written into configurations
            module.__class__ = type(module).__bases__[1]


def _each(values: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(values, torch.Tensor):
        return change(values)
    if isinstance(values, Mapping):
        return {name: _each(value, change) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_each(value, change) for value in values)
    return values
