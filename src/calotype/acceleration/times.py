"""What residual blocks add for a step's time: products of one embedding with the matrices of all, in one launch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calotype.acceleration.layers import is_plain
from calotype.acceleration.usable import Kernels
from calotype.nn.resnet import ResnetBlock2D


@dataclass
class Group:
    """Blocks that read the same embedding, which is of this shape and type and on this device."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    blocks: dict[ResnetBlock2D, None] = field(default_factory=dict)

    def zeros(self) -> Tensor:
        """Such an embedding."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


class TimeReaders:
    """The blocks that read embeddings in a call, noted in the order in which they do.

    Those of an embedding are known by the first of them, as an embedding itself is another one in each call.
    """

    def __init__(self) -> None:
        self.groups: dict[ResnetBlock2D, Group] = {}
        self._read: list[tuple[Tensor, Group]] = []

    def note(self, block: ResnetBlock2D, embedding: Tensor) -> None:
        """Note that the block reads it."""
        group = next((group for one, group in self._read if one is embedding), None)
        if group is None:
            group = self.groups.setdefault(block, Group(embedding.shape, embedding.dtype, embedding.device))
            self._read.append((embedding, group))
        group.blocks[block] = None

    def done(self) -> TimeReaders:
        """The same without the embeddings, so that they are not kept."""
        self._read = []
        return self


class Times:
    """Tables for the launches of a call, one for each embedding that several plain blocks were noted to read.

    A table's entries are copied from the host and its results lie beside them, so tables are made before a call is
    captured and kept as long as that. Results are written and read within one replay, so they could lie in the memory
    that all graphs share; the entries, which are only read, could not: other graphs' replays write there. Addresses in
    a table are those of the weights that the whole capture depends on, and go with it where one of these has moved.
    """

    def __init__(self, noted: TimeReaders, kernels: Kernels) -> None:
        self.kernels = kernels
        self.tables: dict[ResnetBlock2D, tuple[Group, Any]] = {}
        for first, group in noted.groups.items():
            like = group.zeros()
            together = Group(like.shape, like.dtype, like.device)
            parts: list[nn.Linear] = []
            for block in group.blocks if kernels.take(like) else ():
                part = block.time_emb_proj
                if (
                    part is not None
                    and is_plain(part, nn.Linear)
                    and kernels.products.fit(like, part.weight, part.bias)
                ):
                    together.blocks[block] = None
                    parts.append(part)
            if len(parts) > 1:
                # a group of the kernel's for each, so that rows of its result are not far apart and begin aligned
                weights, biases = [[part.weight] for part in parts], [[part.bias] for part in parts]
                self.tables[first] = together, kernels.products.Table(like, weights, biases)

    def compute(self) -> None:
        """Launch once for each table with numbers that do not matter, so that the kernel is compiled."""
        for group, table in self.tables.values():
            self.kernels.products.fused(group.zeros(), table)

    def memory(self) -> list[Any]:
        """What replays read and write."""
        return [table for _, table in self.tables.values()]


class Shifts:
    """What blocks add to their maps in one run of a model, which computes it from ``times``."""

    def __init__(self, times: Times) -> None:
        self.kernels, self.left = times.kernels, dict(times.tables)
        self.found: list[tuple[Tensor, dict[ResnetBlock2D, Tensor]]] = []

    def known(self, block: ResnetBlock2D, embedding: Tensor, activated: Tensor) -> Tensor | None:
        """The product of ``activated`` with the block's matrix and its bias, (batch, channels), if it is in a table."""
        found = next((shifts for one, shifts in self.found if one is embedding), None)
        if found is None:
            found = self._launched(block, activated)
            self.found.append((embedding, found))
        return found.get(block)

    def _launched(self, first: ResnetBlock2D, x: Tensor) -> dict[ResnetBlock2D, Tensor]:
        group, table = self.left.get(first, (None, None))
        if group is None or (x.shape, x.dtype) != (group.shape, group.dtype) or not x.is_contiguous():
            return {}
        del self.left[first]  # a second launch would overwrite what others are still to read
        products = self.kernels.products.fused(x, table)
        return {block: shift for block, (shift,) in zip(group.blocks, products, strict=True)}
