"""Token merging in a U-Net, from outside: its transformers attend over fewer pixels while it is on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.token_merging import Merge, Tiling, alike
from calotype.nn.transformer import BasicTransformerBlock, SpatialTransformer

_SIZES: ContextVar[tuple[tuple[int, int], ...]] = ContextVar("calotype_map_sizes", default=())
_MERGES: ContextVar[tuple[Merge | None, ...]] = ContextVar("calotype_token_merges", default=())
"""The sizes of the feature maps, and the merges, inside which this thread is; the innermost is last."""


@dataclass(frozen=True)
class TokenMerging:
    """A ``ratio`` of the pixels is merged where a map is at most ``max_downsample`` times smaller than the input.

    Each tile of ``sx`` by ``sy`` pixels has a destination, drawn at random with ``use_rand``: anew for each block, the
    same in every call. ``merge_attn`` concerns self-attention, ``merge_crossattn`` attention to the context and
    ``merge_mlp`` the feed-forward layer.
    """

    ratio: float = 0.5
    max_downsample: int = 1
    sx: int = 2
    sy: int = 2
    use_rand: bool = True
    merge_attn: bool = True
    merge_crossattn: bool = False
    merge_mlp: bool = False

    def __post_init__(self) -> None:
        ratio = self.ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise InputError(f"ratio must be at least 0 and below 1, not {ratio!r}.")
        for name in ("max_downsample", "sx", "sy"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number above 0, not {value!r}.")
        if self.sx * self.sy < 2:
            raise InputError("Tiles of sx=1, sy=1 have no pixel that could be merged into another.")


def enable(unet: nn.Module, settings: TokenMerging) -> None:
    """Merge tokens in a U-Net from now on; ``InputError`` where it has no transformer that this could be for."""
    concerned = [part for scale, part in _by_scale(unet) if scale <= settings.max_downsample]
    if not concerned:
        scales = sorted({scale for scale, _ in _by_scale(unet)})
        raise InputError(
            f"The {type(unet).__name__} has no transformers where its maps are at most {settings.max_downsample} times "
            f"smaller than its input"
            + (
                f"; pass max_downsample={scales[0]} or more."
                if scales
                else ", so there are no tokens to merge."
            )
        )
    disable(unet)
    number = 0
    for transformer in concerned:
        transformer.register_forward_pre_hook(_Hook(_enter_map), with_kwargs=True)
        transformer.register_forward_hook(_Hook(_leave_map), always_call=True)
        for block in transformer.transformer_blocks:
            assert isinstance(block, BasicTransformerBlock)
            tiling = Tiling(settings.sy, settings.sx, number if settings.use_rand else None)
            block.register_forward_pre_hook(_Hook(_Enter(settings.ratio, tiling)), with_kwargs=True)
            block.register_forward_hook(_Hook(_leave_block), always_call=True)
            wanted = (settings.merge_attn, settings.merge_crossattn, settings.merge_mlp)
            for part, asked in zip((block.attn1, block.attn2, block.ff), wanted, strict=True):
                if asked and part is not None:
                    part.register_forward_pre_hook(_Hook(_merge))
                    part.register_forward_hook(_Hook(_unmerge))
            number += 1


def disable(unet: nn.Module) -> None:
    """Merge none any more; the model is as it was."""
    for part in unet.modules():
        tables: Any = (
            (part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs),
            (part._forward_hooks, part._forward_hooks_always_called),
        )
        for hooks, marked in tables:
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
                del hooks[key]
                marked.pop(key, None)


def _by_scale(unet: Any) -> Iterator[tuple[int, SpatialTransformer]]:
    """How many times smaller than the input the map of each transformer is, and the transformer."""
    scale = 1
    for stage in unet.down_blocks:
        yield from ((scale, part) for part in stage.modules() if isinstance(part, SpatialTransformer))
        scale *= 2 if stage.downsamplers is not None else 1
    if unet.mid_block is not None:
        yield from (
            (scale, part) for part in unet.mid_block.modules() if isinstance(part, SpatialTransformer)
        )
    for stage in unet.up_blocks:
        yield from ((scale, part) for part in stage.modules() if isinstance(part, SpatialTransformer))
        scale //= 2 if stage.upsamplers is not None else 1


class _Hook:
    """A hook that can be told from those of others."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def _enter_map(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = args[0] if args else kwargs["hidden_states"]
    _SIZES.set((*_SIZES.get(), tuple(x.shape[-2:])))


def _leave_map(transformer: nn.Module, args: Any, output: Any) -> None:
    _SIZES.set(_SIZES.get()[:-1])


@dataclass(frozen=True)
class _Enter:
    ratio: float
    tiling: Tiling

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        size = _SIZES.get()[-1]
        assert math.prod(size) == x.shape[1]
        if kwargs.get("attention_mask") is not None:
            raise InputError("Tokens cannot be merged under an attention_mask; call disable_tome() first.")
        _MERGES.set((*_MERGES.get(), alike(x, size, self.ratio, self.tiling)))


def _leave_block(block: nn.Module, args: Any, output: Any) -> None:
    _MERGES.set(_MERGES.get()[:-1])


def _merge(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    merge = _MERGES.get()[-1]
    return None if merge is None else (merge.merge(args[0]), *args[1:])


def _unmerge(layer: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
    merge = _MERGES.get()[-1]
    return None if merge is None else merge.unmerge(output)
