"""Token merging (https://arxiv.org/abs/2303.17604): attention over fewer pixels, where many are alike.

One pixel of each tile is a destination. Of the others those that are most alike to a destination are merged into it by
their mean; after attention each of them gets what its destination got.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Tiling(NamedTuple):
    """Tiles of ``height`` x ``width`` pixels; destinations are drawn by ``seed``, or the first pixels if it is None."""

    height: int = 2
    width: int = 2
    seed: int | None = 0


class Merge(NamedTuple):
    """Which tokens stand for which; the indices are (batch, count) into ``sources``, or into ``destinations``."""

    sources: torch.Tensor
    destinations: torch.Tensor
    kept: torch.Tensor
    merged: torch.Tensor
    into: torch.Tensor

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n, channels) -> the sources that are kept, then the destinations."""
        others, means = x[:, self.sources], x[:, self.destinations]
        means = means.scatter_reduce(1, _rows(self.into, x), others.gather(1, _rows(self.merged, x)), "mean")
        return torch.cat([others.gather(1, _rows(self.kept, x)), means], dim=1)

    def unmerge(self, y: torch.Tensor) -> torch.Tensor:
        """What was made of merged tokens, at the places of all (batch, n, channels)."""
        kept, means = y.split([self.kept.shape[1], len(self.destinations)], dim=1)
        others = y.new_empty(len(y), len(self.sources), y.shape[2])
        others = others.scatter(1, _rows(self.kept, y), kept)
        others = others.scatter(1, _rows(self.merged, y), means.gather(1, _rows(self.into, y)))
        out = y.new_empty(len(y), len(self.sources) + len(self.destinations), y.shape[2])
        out[:, self.destinations] = means
        out[:, self.sources] = others
        return out


def alike(x: torch.Tensor, size: tuple[int, int], ratio: float, tiling: Tiling) -> Merge | None:
    """The merge of ``ratio`` of the pixels ``x`` (batch, height·width, channels) by their cosine similarity.

    No more can be merged than are no destinations. None where the map has no whole tile, or where nothing is merged.
    """
    height, width = size
    if height < tiling.height or width < tiling.width:
        return None
    sources, destinations = places(height, width, tiling, x.device)
    count = min(len(sources), int(height * width * ratio))
    if count < 1:
        return None
    unit = F.normalize(x.detach(), dim=-1)
    best, into = (unit[:, sources] @ unit[:, destinations].transpose(1, 2)).max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    merged, kept = order[:, :count], order[:, count:]
    return Merge(sources, destinations, kept, merged, into.gather(1, merged))


@lru_cache(maxsize=64)
def places(
    height: int, width: int, tiling: Tiling, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices of the sources and of the destinations of a map, one destination for each whole tile."""
    rows, columns = height // tiling.height, width // tiling.width
    within = torch.zeros(rows, columns, dtype=torch.int64)
    if tiling.seed is not None:
        generator = torch.Generator().manual_seed(tiling.seed)
        within = torch.randint(tiling.height * tiling.width, (rows, columns), generator=generator)
    y = torch.arange(rows)[:, None] * tiling.height + within // tiling.width
    x = torch.arange(columns) * tiling.width + within % tiling.width
    chosen = torch.zeros(height * width, dtype=torch.bool)
    chosen[(y * width + x).flatten()] = True
    return (~chosen).nonzero()[:, 0].to(device), chosen.nonzero()[:, 0].to(device)


def _rows(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
