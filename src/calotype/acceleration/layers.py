"""Layers as stand-ins read them: whether they are plain, their weights, and maps as sequences of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.acceleration.state import joined, siblings
from calotype.nn.attention import Attention
from calotype.nn.transformer import BasicTransformerBlock


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether this is a layer of PyTorch's with weights of its own and nothing hooked to it."""
    return type(module) is kind and getattr(module, "weight", None) is not None and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether something is called with what the module is given, or with what it gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_simple(conv: nn.Module, size: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Whether this moves a window of this size from pixel to pixel, over a map with so many zeros around it."""
    assert isinstance(conv, nn.Conv2d)
    return (
        conv.kernel_size == size
        and conv.padding == padding
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def is_matrix(layer: nn.Module | None) -> bool:
    """Whether this is a plain matrix, or a plain convolution of one pixel, which is one."""
    return is_plain(layer, nn.Linear) or (
        is_plain(layer, nn.Conv2d) and is_simple(layer, (1, 1), (0, 0))  # type: ignore[arg-type]
    )


def covered(block: BasicTransformerBlock) -> bool:
    """Whether the block is one of Stable Diffusion's: no places, no grounding, norms with weights."""
    norms = [norm for norm in (block.norm1, block.norm2, block.norm3) if norm is not None]
    return (
        block.pos_embed is None
        and not is_hooked(block)
        and all(is_plain(norm, nn.LayerNorm) for norm in norms)
    )


def as_sequence(x: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, height · width, channels), a view of a channels-last map."""
    return x.flatten(2).transpose(1, 2)


def on_sequence(layer: nn.Module, h: Tensor, size: torch.Size) -> Tensor:
    """A 1x1 convolution or a matrix on (batch, pixels, channels)."""
    if isinstance(layer, nn.Conv2d) and is_matrix(layer):
        return F.linear(h, layer.weight.flatten(1), layer.bias)
    if isinstance(layer, nn.Linear) or getattr(layer, "in_features", None) is not None:
        return layer(h)
    return as_sequence(layer(h.transpose(1, 2).unflatten(2, size)))


def packed(layer: Attention) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of queries, keys and values (of a prompt, the latter) as one, where they lie so in memory."""
    parts = [part for part in siblings(layer) if isinstance(part, nn.Linear) and is_plain(part, nn.Linear)]
    if len(parts) != len(siblings(layer)):
        return None
    weight = joined([part.weight for part in parts])
    if weight is None or parts[0].bias is None:
        return None if weight is None else (weight, None)
    bias = joined([part.bias for part in parts])
    return None if bias is None else (weight, bias)
