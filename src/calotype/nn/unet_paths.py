"""Down and up through the stages of a U-Net: features kept on one way and read on the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.replaceable import replaceable
from calotype.nn.stage import Conditioning, DownStage, UpStage


class Added(NamedTuple):
    """What stands beside a U-Net and adds to its features.

    ``inside`` (a T2I-Adapter's) is for the stages of the way down; ``across`` and ``middle`` (a ControlNet's) are for
    all that is kept there and for the lowest resolution.
    """

    inside: Sequence[torch.Tensor] = ()
    across: Sequence[torch.Tensor] | None = None
    middle: torch.Tensor | None = None


@replaceable
def through(
    model: Any,
    features: list[torch.Tensor],
    given: Conditioning,
    added: Added = Added(),  # noqa: B008 (immutable)
) -> torch.Tensor:
    """The features before the last norm of a U-Net with ``down_blocks``, ``mid_block`` and ``up_blocks``.

    Those after ``conv_in`` are taken off the list, so that nobody holds them longer than they are needed.
    """
    h, kept = to_the_middle(model, features, given, added)
    return up_path(model.up_blocks, h, kept, given)


def to_the_middle(
    model: Any, features: list[torch.Tensor], given: Conditioning, added: Added
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Down and through the stage at the lowest resolution: its output, and all that is kept for the way up."""
    h, kept, left = down_path(model.down_blocks, features.pop(), given, added.inside)
    if model.mid_block is not None:
        h = model.mid_block(h, given)
        if left and left[0].shape == h.shape:
            h = h + left.pop(0)
    if added.across is not None:
        kept = add_residuals(kept, added.across)
    if added.middle is not None:
        h = h + added.middle
    return h, kept


def down_path(
    blocks: Iterable[nn.Module],
    h: torch.Tensor,
    given: Conditioning,
    residuals: Sequence[torch.Tensor] = (),
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """From the features after ``conv_in`` to the lowest resolution.

    ``residuals`` (a T2I-Adapter's) are added to the stages' outputs, one each: before the change of resolution in
    stages that read the context, after it in the others. Returns the output, all that is kept for the way
    up, and the residuals left over.
    """
    kept, left = [h], list(residuals)
    for block in blocks:
        stage = cast(DownStage, block)
        inside = left.pop(0) if left and stage.has_cross_attention else None
        h, features = stage(h, given, inside)
        if left and not stage.has_cross_attention:
            residual = left.pop(0)
            if features and features[-1] is h:
                features[-1] = h + residual
            h = h + residual
        kept += features
    return h, kept, left


def up_path(
    blocks: Iterable[nn.Module],
    h: torch.Tensor,
    kept: list[torch.Tensor],
    given: Conditioning,
) -> torch.Tensor:
    """From the lowest resolution to that of the input, reading what was kept on the way down and emptying the list.

    Each stage grows to the size of what the next one reads, so inputs need not be divisible by a power of two.
    """
    for block in blocks:
        stage = cast(UpStage, block)
        count = len(stage.resnets)
        taken = kept[-count:]
        del kept[-count:]
        h = stage(h, taken, given, odd_size(h, kept))
    return h


def odd_size(h: torch.Tensor, left: Sequence[torch.Tensor]) -> torch.Size | None:
    """The size of what the next stage reads, if it is not twice that of ``h``."""
    if not left:
        return None
    size = left[-1].shape[2:]
    return None if size == (2 * h.shape[2], 2 * h.shape[3]) else size


def add_residuals(kept: Sequence[torch.Tensor], residuals: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What was kept on the way down plus a ControlNet's residuals, one for each."""
    if len(kept) != len(residuals):
        raise InputError(
            f"down_block_additional_residuals has {len(residuals)} tensors and the way down keeps {len(kept)}: the "
            f"ControlNet belongs to another architecture."
        )
    return [feature + residual for feature, residual in zip(kept, residuals, strict=True)]
