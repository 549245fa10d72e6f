"""Layers of a U-Net over videos computed in parts."""

from __future__ import annotations

from torch import nn

from calotype.core.errors import InputError
from calotype.nn.in_parts import work_in_parts
from calotype.nn.resampling import Downsample2D, Upsample2D
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.temporal import TemporalTransformer
from calotype.nn.transformer import SpatialTransformer

_WITHIN_FRAMES = (ResnetBlock2D, SpatialTransformer, Downsample2D, Upsample2D)
"""What computes each frame by itself."""


class SplitAccess:
    """For models whose layers read all frames, or all pixels' ways through time, at once; abstract."""

    def enable_split_inference(self, pixels: int | None, frames: int | None) -> None:
        """Compute so many ``frames`` at a time within frames, and so many ``pixels`` at a time along time.

        The result is the same, in less memory. None computes all at once. Raises ``InputError`` for numbers below 1.
        """
        for name, size in (("pixels", pixels), ("frames", frames)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise InputError(f"A part has a whole number of {name}, at least 1, not {size!r}.")
        assert isinstance(self, nn.Module)
        modules = list(self.modules())
        along_time = [
            block
            for one in modules
            if isinstance(one, TemporalTransformer)
            for block in one.transformer_blocks
        ]
        work_in_parts(along_time, pixels)
        work_in_parts((one for one in modules if isinstance(one, _WITHIN_FRAMES)), frames)
