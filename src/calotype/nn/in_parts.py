"""Modules that work on a part of the batch at a time, in less memory and with the same result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from calotype.nn.perturbation import Perturbation


class InParts:
    """A module's ``forward`` for ``size`` rows of the batch at a time; every row must be computed by itself."""

    def __init__(self, module: nn.Module, size: int) -> None:
        self.module = module
        self.size = size

    def __call__(self, h: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.module).forward
        groups = _groups((args, kwargs))
        rows = len(h) // groups
        step = max(1, self.size // groups)
        if rows <= step:
            return forward(self.module, h, *args, **kwargs)
        made = []
        for begin in range(0, rows, step):
            cut = _Cut(len(h), groups, slice(begin, begin + step))
            part: Any = forward(self.module, cut(h), *cut(args), **cut(kwargs))
            made.append(part.unflatten(0, (groups, -1)))
        return torch.cat(made, dim=1).flatten(0, 1)


class _Cut:
    """A slice of each of several equal groups of the batch, in all tensors that have a row for each of the batch."""

    def __init__(self, batch: int, groups: int, part: slice) -> None:
        self.batch, self.groups, self.part = batch, groups, part

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.ndim == 0 or len(value) != self.batch:
                return value
            return value.unflatten(0, (self.groups, -1))[:, self.part].flatten(0, 1)
        if isinstance(value, Mapping):
            return {name: self(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            parts = [self(inner) for inner in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value


def _groups(value: Any) -> int:
    """Into how many groups the arguments divide the batch: those of a perturbation, which concerns the last one."""
    if isinstance(value, Perturbation):
        return value.parts
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 1
    return max((_groups(inner) for inner in value), default=1)


def work_in_parts(modules: Iterable[nn.Module], size: int | None) -> None:
    """Let modules work on ``size`` rows of the batch at a time from now on; None lets them work on all."""
    for module in modules:
        module.__dict__.pop("forward", None)
        if size is not None:
            module.__dict__["forward"] = InParts(module, size)
