"""Attention to pictures beside the context: keys and values of their own, whose answers are added (IP-Adapter).

https://arxiv.org/abs/2308.06721, section 3.2.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError

if TYPE_CHECKING:
    from calotype.nn.attention import Attention

WITH_IMAGE_PROMPT = "ip_image_proj"
"""What ``encoder_hid_dim_type`` shows while a UNet has an IP-Adapter."""

Scale = float | tuple[float, ...]
"""How strongly an adapter's pictures act: together, or each by itself."""


class ImagePrompts(NamedTuple):
    """What the pictures of a call are to attention layers, an entry for each adapter.

    It goes with a call, as ``cross_attention_kwargs={"image_prompts": …}``. ``tokens`` are (batch, pictures, n,
    channels); ``scales`` go by the name of the layer, which need not have one; ``masks`` (1 or batch, pictures, height,
    width) say how much of each picture is seen where, None that all are seen everywhere.
    """

    tokens: tuple[torch.Tensor, ...]
    scales: tuple[Mapping[str, Scale], ...]
    masks: tuple[torch.Tensor | None, ...]


class ImageSources(nn.Module):
    """The keys and values that one cross-attention layer has for pictures: a pair of matrices for each adapter."""

    def __init__(self, layer: str, to_k: list[nn.Module], to_v: list[nn.Module]) -> None:
        super().__init__()
        self.layer = layer
        self.to_k_ip = nn.ModuleList(to_k)
        self.to_v_ip = nn.ModuleList(to_v)

    def forward(
        self, attn: Attention, q: torch.Tensor, out: torch.Tensor, given: ImagePrompts
    ) -> torch.Tensor:
        """``out`` (batch, n, inner) and what the queries of ``attn`` find in the pictures, Σᵢ λᵢ·Attn(Q, Kᵢ, Vᵢ)."""
        for to_k, to_v, tokens, scales, mask in zip(self.to_k_ip, self.to_v_ip, *given, strict=True):
            scale = scales.get(self.layer, 0.0)
            if mask is None:
                assert not isinstance(scale, tuple), "a scale for each picture needs masks"
                if scale:
                    context = tokens.flatten(1, 2)
                    out = out + scale * attn.attend(q, to_k(context), to_v(context))
                continue
            each = scale if isinstance(scale, tuple) else (scale,) * tokens.shape[1]
            for index, amount in enumerate(each):
                if amount:
                    context = tokens[:, index]
                    seen = attn.attend(q, to_k(context), to_v(context))
                    out = out + amount * seen * mask_of_queries(mask[:, index], q.shape[1]).to(q.dtype)
        return out


def mask_of_queries(mask: torch.Tensor, queries: int) -> torch.Tensor:
    """A mask (batch, height, width) for the queries of a feature map of its proportions: (batch, queries, 1).

    Where the map's size cannot be told from the number of its queries, the last ones get 0.
    """
    high, wide = mask.shape[-2:]
    rows = max(int(math.sqrt(queries * high / wide)), 1)
    rows += queries % rows != 0
    small = F.interpolate(mask[:, None].float(), size=(rows, max(queries // rows, 1)), mode="bicubic")
    flat = small.flatten(1)[:, :queries]
    return F.pad(flat, (0, queries - flat.shape[1])).unsqueeze(-1)


def adapter_masks(
    masks: Any, pictures: Sequence[int], scales: Sequence[Mapping[str, Scale]]
) -> tuple[torch.Tensor | None, ...]:
    """The masks of a call, one tensor (1, pictures, height, width) or None for each adapter.

    ``masks`` is a list of such, a tensor (adapters, 1, height, width) where each adapter has one picture, or None;
    ``pictures`` has the number of each adapter's. Raises ``InputError`` for other counts, and for a scale for each
    picture where there are no masks.
    """
    if isinstance(masks, torch.Tensor):
        masks = list(masks[:, None]) if masks.ndim == 4 else masks
    if masks is None:
        masks = [None] * len(pictures)
    if not isinstance(masks, list | tuple) or len(masks) != len(pictures):
        raise InputError(
            f"ip_adapter_masks must be a list of {len(pictures)} masks, one tensor for each IP-Adapter."
        )
    for mask, count, by_layer in zip(masks, pictures, scales, strict=True):
        if mask is not None and (
            not isinstance(mask, torch.Tensor) or mask.ndim != 4 or mask.shape[1] != count
        ):
            found = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise InputError(
                f"The masks of an IP-Adapter with {count} pictures are a tensor (1, {count}, height, width), not "
                f"{found}."
            )
        lists = [scale for scale in by_layer.values() if isinstance(scale, tuple)]
        if lists and mask is None:
            raise InputError(
                "A scale for each picture of an IP-Adapter needs a mask for each: pass ip_adapter_masks."
            )
        if wrong := [scale for scale in lists if len(scale) != count]:
            raise InputError(f"There are {len(wrong[0])} scales for the {count} pictures of an IP-Adapter.")
    return tuple(masks)
