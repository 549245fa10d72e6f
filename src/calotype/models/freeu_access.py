"""FreeU on and off, for the U-Nets whose ways up take it."""

from __future__ import annotations

from torch import nn

from calotype.nn.freeu import FreeU
from calotype.nn.stage import UpStage


class FreeUAccess:
    """For models with stages on the way up in ``up_blocks``; abstract."""

    up_blocks: nn.ModuleList

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale skips (``s``) and backbone (``b``) of the first and second up stage (https://arxiv.org/abs/2309.11497)."""
        factors = FreeU(s1=s1, s2=s2, b1=b1, b2=b2)
        for index, stage in enumerate(self.up_blocks):
            if isinstance(stage, UpStage) and stage.takes_freeu:
                stage.freeu = factors.of_stage(index)

    def disable_freeu(self) -> None:
        """Undo :meth:`enable_freeu`."""
        for stage in self.up_blocks:
            if isinstance(stage, UpStage):
                stage.freeu = None
