"""Networks applied to large pictures tile by tile, in the memory that one tile takes.

Two ways of joining tiles are in use, and the numbers of released models depend on which: fading each tile into its
neighbours in turn, and painting each over what is there with a soft edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch

from calotype.core.errors import InputError

TileFunction = Callable[[torch.Tensor], torch.Tensor]


class AutoencoderMixin:
    """The switches by which an autoencoder works in less memory."""

    use_slicing: bool = False
    use_tiling: bool = False

    def enable_slicing(self) -> None:
        """Work on one item of a batch at a time; the result is the same."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Work on whole batches again."""
        self.use_slicing = False

    def enable_tiling(self) -> None:
        """Work on large pictures in overlapping tiles; the result changes a little."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Work on whole pictures again."""
        self.use_tiling = False

    def _each(self, function: TileFunction, x: torch.Tensor) -> torch.Tensor:
        """``function`` of the batch, or of one item after the other with slicing."""
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([function(item) for item in x.split(1)])
        return function(x)


def fade(before: torch.Tensor, after: torch.Tensor, extent: int, dim: int) -> torch.Tensor:
    """``after`` with its first ``extent`` entries along ``dim`` crossfaded from the last ones of ``before``."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    if extent <= 0:
        return after
    shape = [1] * after.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, dtype=torch.float64) / extent).to(after.device, after.dtype).view(shape)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start, rest = after.split([extent, after.shape[dim] - extent], dim=dim)
    return torch.cat([end * (1 - weight) + start * weight, rest], dim=dim)


def faded_tiles(
    function: TileFunction, x: torch.Tensor, *, tile: int, step: int, extent: int, keep: int
) -> torch.Tensor:
    """``function`` over tiles of ``x`` (batch, channels, height, width), each faded into those above and left.

    A tile of ``tile`` pixels starts at every multiple of ``step``; ``extent`` pixels of each output tile are
    crossfaded and the first ``keep`` are kept, so ``keep`` is what ``step`` becomes in the output.
    """
    above: list[torch.Tensor] = []
    rows = []
    for top in range(0, x.shape[2], step):
        row: list[torch.Tensor] = []
        for column, left in enumerate(range(0, x.shape[3], step)):
            out = function(x[:, :, top : top + tile, left : left + tile])
            if above:
                out = fade(above[column], out, extent, dim=2)
            if row:
                out = fade(row[-1], out, extent, dim=3)
            row.append(out)
        rows.append(torch.cat([out[:, :, :keep, :keep] for out in row], dim=3))
        above = row
    return torch.cat(rows, dim=2)


def overlapping_tiles(
    function: TileFunction, x: torch.Tensor, tile: int, out_tile: int, overlap: float
) -> torch.Tensor:
    """``function`` over tiles of ``tile`` pixels, which become ``out_tile``, and share a fraction ``overlap``."""
    step = int(tile * (1 - overlap))
    extent = int(out_tile * overlap)
    if step < 1:
        raise InputError(
            f"Tiles of {tile} pixels that overlap by a factor of {overlap} do not advance: set a larger "
            f"tile_sample_min_size and tile_latent_min_size."
        )
    return faded_tiles(function, x, tile=tile, step=step, extent=extent, keep=out_tile - extent)


def painted_tiles(
    function: TileFunction, x: torch.Tensor, *, tile: int, step: int, scale: Fraction
) -> torch.Tensor:
    """``function``, which changes sizes by ``scale``, over tiles of ``x``, each painted over the ones before.

    A tile's upper and left edges are transparent and become opaque over the ``tile - step`` pixels of overlap.
    """
    height, width = (math.floor(size * scale) for size in x.shape[-2:])
    size, overlap = math.floor(tile * scale), (tile - step) * scale
    opacity = torch.ones(size)
    if overlap > 1:
        opacity = (torch.arange(size) / float(overlap - 1)).clamp(0, 1)
    canvas: torch.Tensor | None = None
    for top in range(0, x.shape[-2], step):
        for left in range(0, x.shape[-1], step):
            out = function(x[..., top : top + tile, left : left + tile])
            if canvas is None:
                canvas = out.new_zeros((*out.shape[:-2], height, width))
                opacity = opacity.to(out)
            y, x0 = math.floor(top * scale), math.floor(left * scale)
            h, w = min(out.shape[-2], height - y), min(out.shape[-1], width - x0)
            mask = opacity.new_ones(h, w)
            if top > 0:
                mask = mask * opacity[:h, None]
            if left > 0:
                mask = mask * opacity[:w]
            under = canvas[..., y : y + h, x0 : x0 + w]
            under.copy_(mask * out[..., :h, :w] + (1 - mask) * under)
    assert canvas is not None
    return canvas
