"""The U-Net of Kandinsky 3 (arXiv:2312.03511): narrow blocks of four convolutions, and the time in every norm."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.modeling import ModelMixin
from calotype.models.unet_conditioning import additive_mask, as_times
from calotype.nn.attention import Attention
from calotype.nn.embeddings import TimestepEmbedding, Timesteps

ATTENDS = (False, True, True, True)
"""Which levels attend to pixels and text, from the finest down; the way up reads it backwards from its end."""

NARROWING, WIDENING = 2, 4
"""How much narrower the convolutions inside a residual block are, and how much wider the layers after attention."""


@dataclass
class Kandinsky3UNetOutput(BaseOutput):
    """``sample`` (batch, in_channels, height, width)."""

    sample: torch.Tensor | None = None


class TimeGroupNorm(nn.Module):
    """Group normalisation that the time scales and shifts; before training it does neither."""

    def __init__(self, groups: int, channels: int, time_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, affine=False)
        self.context_mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * channels))
        for parameter in self.context_mlp[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.context_mlp(temb)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


def enlarging(channels: int) -> nn.Module:
    """Twice the height and width."""
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)


def halving(channels: int) -> nn.Module:
    """Half the height and width."""
    return nn.Conv2d(channels, channels, kernel_size=2, stride=2)


class NormedConvolution(nn.Module):
    """Norm, activation, then a convolution; in a larger size before it, or a smaller one after it."""

    def __init__(
        self, before: int, after: int, time_dim: int, kernel: int, groups: int, up: bool, down: bool
    ) -> None:
        super().__init__()
        self.group_norm = TimeGroupNorm(groups, before, time_dim)
        self.up_sample = enlarging(before) if up else nn.Identity()
        self.projection = nn.Conv2d(before, after, kernel, padding=kernel // 2)
        self.down_sample = halving(after) if down else nn.Identity()

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return self.down_sample(self.projection(self.up_sample(F.silu(self.group_norm(x, temb)))))


class Bottleneck(nn.Module):
    """Four convolutions of sizes 1, 3, 3, 1, the inner ones of half the width, added to the input.

    The second enlarges where the block goes ``up``; the third makes it smaller where the block goes ``down``.
    """

    def __init__(
        self, before: int, after: int, time_dim: int, groups: int, up: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        inner = max(before, after) // NARROWING
        widths = pairwise((before, inner, inner, inner, after))
        self.resnet_blocks = nn.ModuleList(
            NormedConvolution(
                *width, time_dim, kernel, groups, up=up and place == 1, down=down and place == 2
            )
            for place, (width, kernel) in enumerate(zip(widths, (1, 3, 3, 1), strict=True))
        )
        self.shortcut_up_sample = enlarging(before) if up else nn.Identity()
        self.shortcut_projection = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.shortcut_down_sample = halving(after) if down else nn.Identity()

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        h = x
        for block in self.resnet_blocks:
            h = block(h, temb)
        return h + self.shortcut_down_sample(self.shortcut_projection(self.shortcut_up_sample(x)))


class TimedAttention(nn.Module):
    """Attention of pixels to a text, or to each other where ``context_dim`` is None, and two layers on each pixel."""

    def __init__(
        self, channels: int, time_dim: int, context_dim: int | None, groups: int, head_dim: int
    ) -> None:
        super().__init__()
        self.in_norm = TimeGroupNorm(groups, channels, time_dim)
        self.attention = Attention(
            channels, context_dim or channels, channels // head_dim, head_dim, out_bias=False
        )
        self.out_norm = TimeGroupNorm(groups, channels, time_dim)
        wide = WIDENING * channels
        self.feed_forward = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.SiLU(), nn.Conv2d(wide, channels, 1, bias=False)
        )

    def forward(
        self,
        x: torch.Tensor,
        temb: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        pixels = self.in_norm(x, temb).flatten(2).transpose(1, 2)
        seen = self.attention(pixels, pixels if context is None else context, mask)
        x = x + seen.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.feed_forward(self.out_norm(x, temb))


class Level(nn.Module):
    """One resolution: pairs of residual blocks with attention to the text between the two of each pair.

    ``attentions[0]`` is that of the pixels to each other: at the beginning on the way down, at the end on the way up
    (``rising``). ``widths`` are the channels before and after the first block of each pair, and after its second.
    """

    def __init__(
        self,
        widths: list[tuple[int, int, int]],
        time_dim: int,
        context_dim: int | None,
        groups: int,
        head_dim: int,
        rising: bool,
        resampled: bool,
    ) -> None:
        super().__init__()
        self.rising = rising
        own = widths[-1][2] if rising else widths[0][0]
        attends = context_dim is not None

        def attention(channels: int, told: int | None) -> nn.Module:
            return TimedAttention(channels, time_dim, told, groups, head_dim) if attends else nn.Identity()

        last = len(widths) - 1
        self.attentions = nn.ModuleList(
            [attention(own, None), *(attention(width, context_dim) for _, width, _ in widths)]
        )
        self.resnets_in = nn.ModuleList(
            Bottleneck(before, width, time_dim, groups, up=resampled and rising and place == 0)
            for place, (before, width, _) in enumerate(widths)
        )
        self.resnets_out = nn.ModuleList(
            Bottleneck(width, after, time_dim, groups, down=resampled and not rising and place == last)
            for place, (_, width, after) in enumerate(widths)
        )

    def forward(
        self, x: torch.Tensor, temb: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        own, *others = self.attentions
        attends = isinstance(own, TimedAttention)
        if attends and not self.rising:
            x = own(x, temb)
        for first, attention, second in zip(self.resnets_in, others, self.resnets_out, strict=True):
            x = first(x, temb)
            x = attention(x, temb, context, mask) if attends else x
            x = second(x, temb)
        return own(x, temb) if attends and self.rising else x


class TokenPooling(nn.Module):
    """The tokens' mean asks and the tokens answer: (batch, n, width) to (batch, time_dim)."""

    def __init__(self, time_dim: int, context_dim: int, head_dim: int) -> None:
        super().__init__()
        self.attention = Attention(
            context_dim, context_dim, time_dim // head_dim, head_dim, out_dim=time_dim, out_bias=False
        )

    def forward(self, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self.attention(context.mean(dim=1, keepdim=True), context, mask)[:, 0]


class TokenProjector(nn.Module):
    """The text encoder's states in the width that attention reads, normalised."""

    def __init__(self, text_dim: int, context_dim: int) -> None:
        super().__init__()
        self.projection_linear = nn.Linear(text_dim, context_dim, bias=False)
        self.projection_norm = nn.LayerNorm(context_dim)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.projection_norm(self.projection_linear(states))


class Kandinsky3UNet(AdapterAccess, AttentionAccess, ModelMixin):
    """A U-Net over latents that attends to the tokens of a large language model.

    At most four levels, of ``block_out_channels``, each of ``layers_per_block`` (at least 2) pairs of residual blocks.
    """

    _supports_gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int = 4,
        time_embedding_dim: int = 1536,
        groups: int = 32,
        attention_head_dim: int = 64,
        layers_per_block: int | tuple[int] = 3,
        block_out_channels: tuple[int, ...] = (384, 768, 1536, 3072),
        cross_attention_dim: int | tuple[int] = 4096,
        encoder_hid_dim: int = 4096,
    ) -> None:
        super().__init__()
        if not isinstance(cross_attention_dim, int) or not isinstance(layers_per_block, int):
            raise InputError(
                "layers_per_block and cross_attention_dim must each be one number for all levels."
            )
        if layers_per_block < 2 or not 1 <= len(block_out_channels) <= len(ATTENDS):
            raise InputError(
                f"Kandinsky3UNet has 1 to {len(ATTENDS)} levels of 2 or more layers, not {len(block_out_channels)} "
                f"levels of {layers_per_block}."
            )
        first, depth = block_out_channels[0] // 2, len(block_out_channels)
        self.time_proj = Timesteps(first, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(first, time_embedding_dim)
        self.add_time_condition = TokenPooling(time_embedding_dim, cross_attention_dim, attention_head_dim)
        self.conv_in = nn.Conv2d(in_channels, first, kernel_size=3, padding=1)
        self.encoder_hid_proj = TokenProjector(encoder_hid_dim, cross_attention_dim)

        def level(widths: list[tuple[int, int, int]], attends: bool, rising: bool, resampled: bool) -> Level:
            context = cross_attention_dim if attends else None
            return Level(widths, time_embedding_dim, context, groups, attention_head_dim, rising, resampled)

        steps = list(pairwise((first, *block_out_channels)))
        more = layers_per_block - 1
        self.down_blocks = nn.ModuleList(
            level(
                [(before, after, after)] + [(after, after, after)] * more,
                ATTENDS[place],
                rising=False,
                resampled=place < depth - 1,
            )
            for place, (before, after) in enumerate(steps)
        )
        # all but the lowest level going up read what the way down left beside what comes from below
        self.up_blocks = nn.ModuleList(
            level(
                [(joined, joined, before), *[(before, before, before)] * (more - 1), (before, before, after)],
                ATTENDS[::-1][place],
                rising=True,
                resampled=place > 0,
            )
            for place, (after, before) in enumerate(reversed(steps))
            for joined in (before if place == 0 else 2 * before,)
        )
        self.conv_norm_out = nn.GroupNorm(groups, first)
        self.conv_out = nn.Conv2d(first, in_channels, kernel_size=3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Kandinsky3UNetOutput | tuple[torch.Tensor]:
        """The prediction for ``sample`` (batch, in_channels, height, width) at ``timestep``, a number or (batch,).

        ``encoder_hidden_states`` (batch, tokens, encoder_hid_dim) is the text; the mask (batch, tokens) has 1 for
        tokens that are seen. Raises ``InputError`` without a text, which this model cannot do without.
        """
        if encoder_hidden_states is None:
            raise InputError("Kandinsky3UNet needs encoder_hidden_states, the states of its text encoder.")
        features = self.time_proj(as_times(timestep, sample)).to(sample.dtype)
        temb = self.time_embedding(features)
        context = self.encoder_hid_proj(encoder_hidden_states)
        mask = additive_mask(encoder_attention_mask, sample.dtype)
        temb = temb + self.add_time_condition(context, mask)

        h, kept = self.conv_in(sample), []
        for block in self.down_blocks:
            h = block(h, temb, context, mask)
            kept.append(h)
        for place, block in enumerate(self.up_blocks):
            below = kept.pop()
            h = block(h if place == 0 else torch.cat([h, below], dim=1), temb, context, mask)
        h = self.conv_out(F.silu(self.conv_norm_out(h)))
        return Kandinsky3UNetOutput(sample=h) if return_dict else (h,)
