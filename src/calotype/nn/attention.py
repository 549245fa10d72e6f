"""Multi-head attention of U-Nets and autoencoders, over sequences or the pixels of feature maps."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.norms import SpatialNorm
from calotype.nn.replaceable import replaceable

if TYPE_CHECKING:
    from calotype.nn.cross_frame import CrossFrame
    from calotype.nn.image_prompt import ImagePrompts, ImageSources
    from calotype.nn.perturbation import Perturbation

logger = logging.getLogger(__name__)

Processor = Callable[..., torch.Tensor]
"""How an :class:`Attention` computes: called with it, then the arguments of its ``forward``."""


class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V with projections before and after (https://arxiv.org/abs/1706.03762).

    The weights are here, the procedure is in ``processor``, so that adapters and users can put in another one.
    ``cross_attention_dim`` is the width of the context (None: self-attention); ``added_kv_proj_dim`` is that
    of a context whose keys and values stand before the pixels' own. ``cross_attention_norm`` ("layer_norm",
    "group_norm") normalises the context. ``upcast_attention`` and ``upcast_softmax`` are accepted: PyTorch's
    kernels keep scores and softmax in float32 in any case.
    """

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        bias: bool = False,
        upcast_attention: bool = False,
        upcast_softmax: bool = False,
        cross_attention_norm: str | None = None,
        cross_attention_norm_num_groups: int = 32,
        added_kv_proj_dim: int | None = None,
        norm_num_groups: int | None = None,
        spatial_norm_dim: int | None = None,
        out_bias: bool = True,
        scale_qk: bool = True,
        only_cross_attention: bool = False,
        eps: float = 1e-5,
        rescale_output_factor: float = 1.0,
        residual_connection: bool = False,
        processor: Processor | None = None,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        if only_cross_attention and added_kv_proj_dim is None:
            raise InputError("Attention with only_cross_attention=True needs an added_kv_proj_dim.")
        if heads < 1 or dim_head < 1:
            raise InputError(f"Attention needs at least one head of one channel, not {heads} of {dim_head}.")
        context_dim = query_dim if cross_attention_dim is None else cross_attention_dim
        inner_dim = heads * dim_head
        out_dim = query_dim if out_dim is None else out_dim
        self.heads = heads
        self.inner_dim = inner_dim
        self.query_dim = query_dim
        self.cross_attention_dim = context_dim
        self.is_cross_attention = cross_attention_dim is not None
        self.scale = dim_head**-0.5 if scale_qk else 1.0
        self.scale_qk = scale_qk
        self.upcast_attention = upcast_attention
        self.upcast_softmax = upcast_softmax
        self.rescale_output_factor = rescale_output_factor
        self.residual_connection = residual_connection
        self.only_cross_attention = only_cross_attention
        self.added_kv_proj_dim = added_kv_proj_dim

        self.group_norm = (
            nn.GroupNorm(norm_num_groups, query_dim, eps=eps) if norm_num_groups is not None else None
        )
        self.spatial_norm = SpatialNorm(query_dim, spatial_norm_dim) if spatial_norm_dim is not None else None
        self.norm_cross: nn.Module | None = None
        if cross_attention_norm == "layer_norm":
            self.norm_cross = nn.LayerNorm(context_dim)
        elif cross_attention_norm == "group_norm":
            channels = context_dim if added_kv_proj_dim is None else added_kv_proj_dim
            self.norm_cross = nn.GroupNorm(cross_attention_norm_num_groups, channels, eps=1e-5)
        elif cross_attention_norm is not None:
            raise InputError(
                f"cross_attention_norm is None, 'layer_norm' or 'group_norm', not {cross_attention_norm!r}."
            )

        self.to_q = nn.Linear(query_dim, inner_dim, bias=bias)
        self.to_k = None if only_cross_attention else nn.Linear(context_dim, inner_dim, bias=bias)
        self.to_v = None if only_cross_attention else nn.Linear(context_dim, inner_dim, bias=bias)
        if added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(added_kv_proj_dim, inner_dim)
            self.add_v_proj = nn.Linear(added_kv_proj_dim, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, out_dim, bias=out_bias), nn.Dropout(dropout)])
        self.fused_weight: torch.Tensor | None
        self.fused_bias: torch.Tensor | None
        self.register_buffer("fused_weight", None, persistent=False)
        self.register_buffer("fused_bias", None, persistent=False)
        self.register_load_state_dict_post_hook(_fused_anew)
        self.image_sources: ImageSources | None
        self.register_module("image_sources", None)
        self.set_processor(processor or self.default_processor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        perturbation: Perturbation | None = None,
        image_prompts: ImagePrompts | None = None,
        cross_frame: CrossFrame | None = None,
        **cross_attention_kwargs: Any,
    ) -> torch.Tensor:
        """Attend from ``hidden_states`` (batch, n, channels) or (batch, channels, height, width) to a context.

        ``encoder_hidden_states`` (batch, m, channels) is the context, by default the input itself;
        ``attention_mask`` (batch, 1 or n, m) is added to the scores. A ``perturbation`` that concerns this layer puts
        identity in place of self-attention for a part of the batch, ``cross_frame`` attention to a video's first frame.
        ``image_prompts`` concern layers with ``image_sources``. The other arguments are the processor's.
        """
        if perturbation is not None and perturbation.concerns(self):
            kept, perturbed = perturbation.split(hidden_states)
            mask = attention_mask
            if mask is not None and len(mask) == len(hidden_states):
                mask, _ = perturbation.split(mask)
            seen = self(kept, attention_mask=mask, cross_frame=cross_frame, **cross_attention_kwargs)
            return torch.cat([seen, IdentityAttnProcessor()(self, perturbed)])
        if cross_frame is not None and cross_frame.concerns(self, hidden_states, encoder_hidden_states):
            return cross_frame.attend(self, hidden_states, attention_mask, **cross_attention_kwargs)
        if image_prompts is not None and self.image_sources is not None:
            cross_attention_kwargs = {**cross_attention_kwargs, "image_prompts": image_prompts}
        if cross_attention_kwargs:
            cross_attention_kwargs = self._understood(cross_attention_kwargs)
        return self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **cross_attention_kwargs,
        )

    def default_processor(self) -> Processor:
        """The plain procedure for this layer's weights."""
        return AttnProcessor() if self.added_kv_proj_dim is None else AttnAddedKVProcessor()

    def set_processor(self, processor: Processor) -> None:
        """Compute by ``processor`` from now on; one that is a module is saved and moved with the model."""
        self._modules.pop("processor", None)
        self.processor = processor

    def get_processor(self) -> Processor:
        """The procedure in use."""
        return self.processor

    def _understood(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the processor takes; the others are named in a warning."""
        call = self.processor.forward if isinstance(self.processor, nn.Module) else self.processor
        parameters = inspect.signature(call).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return arguments
        unknown = sorted(set(arguments) - set(parameters))
        if unknown:
            logger.warning(
                "cross_attention_kwargs %s are not understood by %s and have no effect.",
                unknown,
                type(self.processor).__name__,
            )
        return {key: value for key, value in arguments.items() if key in parameters}

    @replaceable
    def project(
        self, x: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries of ``x`` (batch, n, channels); keys and values of ``context``, or of ``x`` if it is None."""
        if self.fused_weight is None or not self._fused_stands():
            source = x if context is None else context
            assert self.to_k is not None and self.to_v is not None
            return self.to_q(x), self.to_k(source), self.to_v(source)
        if not self.is_cross_attention and context is None:
            q, k, v = F.linear(x, self.fused_weight, self.fused_bias).chunk(3, dim=-1)
            return q, k, v
        weight = self.fused_weight if self.is_cross_attention else self.fused_weight[self.inner_dim :]
        bias = self.fused_bias
        if bias is not None and not self.is_cross_attention:
            bias = bias[self.inner_dim :]
        k, v = F.linear(x if context is None else context, weight, bias).chunk(2, dim=-1)
        return self.to_q(x), k, v

    def fuse_projections(self) -> None:
        """Compute keys and values (and queries, in self-attention) as one matrix product; weights stay as saved."""
        if self.added_kv_proj_dim is not None or not self._projections_are_plain():
            return
        assert self.to_k is not None and self.to_v is not None
        parts = [self.to_k, self.to_v] if self.is_cross_attention else [self.to_q, self.to_k, self.to_v]
        with torch.no_grad():
            self.fused_weight = torch.cat([part.weight for part in parts])
            self.fused_bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])

    def unfuse_projections(self) -> None:
        """Undo :meth:`fuse_projections`."""
        self.fused_weight = self.fused_bias = None

    def _projections_are_plain(self) -> bool:
        """Whether the weights are all there is to the projections: no adapter has taken the place of one."""
        return all(type(part) is nn.Linear for part in (self.to_q, self.to_k, self.to_v))

    def _fused_stands(self) -> bool:
        """Whether the fused weights say what the projections do; in training gradients go to the latter."""
        training = torch.is_grad_enabled() and self.to_q.weight.requires_grad
        return not training and self._projections_are_plain()

    @replaceable
    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of all heads: (batch, n, inner), (batch, m, inner) twice -> (batch, n, inner)."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if bias is not None and bias.ndim == 3:
            bias = bias[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return out.transpose(1, 2).flatten(2)

    @replaceable
    def merge(self, attended: torch.Tensor) -> torch.Tensor:
        """What the heads have found, (batch, n, inner), as channels of the output: (batch, n, channels)."""
        merged: torch.Tensor = self.to_out[1](self.to_out[0](attended))
        return merged

    def norm_encoder_hidden_states(self, context: torch.Tensor) -> torch.Tensor:
        """The context (batch, m, channels), normalised by the layer's ``cross_attention_norm``."""
        if isinstance(self.norm_cross, nn.GroupNorm):
            return self.norm_cross(context.transpose(1, 2)).transpose(1, 2)
        assert self.norm_cross is not None
        return self.norm_cross(context)

    def head_to_batch_dim(self, tensor: torch.Tensor, out_dim: int = 3) -> torch.Tensor:
        """(batch, n, inner) -> (batch * heads, n, inner / heads), or with the heads apart if ``out_dim`` is 4."""
        split = tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split.flatten(0, 1) if out_dim == 3 else split

    def batch_to_head_dim(self, tensor: torch.Tensor) -> torch.Tensor:
        """(batch * heads, n, inner / heads) -> (batch, n, inner)."""
        return tensor.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def get_attention_scores(
        self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The attention probabilities (batch * heads, n, m), for processors that read or edit them."""
        dtype = query.dtype
        if self.upcast_attention:
            query, key = query.float(), key.float()
        scores = self.scale * torch.matmul(query, key.transpose(-1, -2))
        if attention_mask is not None:
            scores = scores + attention_mask
        return scores.softmax(dim=-1, dtype=torch.float32 if self.upcast_softmax else None).to(dtype)

    def prepare_attention_mask(
        self, attention_mask: torch.Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
    ) -> torch.Tensor | None:
        """The additive mask (batch, 1, m) repeated for the heads; padded by ``target_length`` if m differs."""
        if attention_mask is None:
            return None
        if attention_mask.shape[-1] != target_length:
            attention_mask = F.pad(attention_mask, (0, target_length))
        if out_dim == 4:
            return attention_mask[:, None].expand(-1, self.heads, -1, -1)
        if attention_mask.shape[0] < batch_size * self.heads:
            attention_mask = attention_mask.repeat_interleave(self.heads, dim=0)
        return attention_mask


class AttnProcessor:
    """Attention to the context, or to the input itself; and to pictures, where the layer has ``image_sources``."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_prompts: ImagePrompts | None = None,
    ) -> torch.Tensor:
        context = encoder_hidden_states
        if context is not None and attn.norm_cross is not None:
            context = attn.norm_encoder_hidden_states(context)

        def mix(sequence: torch.Tensor) -> torch.Tensor:
            q, k, v = attn.project(sequence, context)
            out = attn.attend(q, k, v, attention_mask)
            if image_prompts is None or attn.image_sources is None:
                return out
            return attn.image_sources(attn, q, out, image_prompts)

        return with_projections(attn, hidden_states, mix, temb)


class IdentityAttnProcessor:
    """Self-attention in which every pixel sees itself alone (https://arxiv.org/abs/2403.17377, eq. 15)."""

    def __call__(
        self, attn: Attention, hidden_states: torch.Tensor, temb: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert attn.to_v is not None
        return with_projections(attn, hidden_states, attn.to_v, temb)


def with_projections(
    attn: Attention,
    hidden_states: torch.Tensor,
    mix: Callable[[torch.Tensor], torch.Tensor],
    temb: torch.Tensor | None,
) -> torch.Tensor:
    """``mix`` of the normalised sequence (batch, n, channels) -> (batch, n, inner), and what stands around it."""
    residual = hidden_states
    if attn.spatial_norm is not None:
        hidden_states = attn.spatial_norm(hidden_states, temb)
    out = mix(_as_sequence(hidden_states, attn.group_norm))
    out = attn.merge(out)
    if residual.ndim == 4:
        out = out.transpose(1, 2).unflatten(2, residual.shape[2:])
    if attn.residual_connection:
        out = out + residual
    return out if attn.rescale_output_factor == 1.0 else out / attn.rescale_output_factor


class AttnAddedKVProcessor:
    """Attention to the context's keys and values followed by the pixels' own (https://arxiv.org/abs/2102.12092).

    A mask that covers the context only leaves every pixel visible.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        residual = hidden_states
        sequence = _as_sequence(hidden_states, attn.group_norm)
        if encoder_hidden_states is None:
            context = _as_sequence(hidden_states, None)
        elif attn.norm_cross is not None:
            context = attn.norm_encoder_hidden_states(encoder_hidden_states)
        else:
            context = encoder_hidden_states

        k, v = attn.add_k_proj(context), attn.add_v_proj(context)
        if attn.only_cross_attention:
            q = attn.to_q(sequence)
        else:
            q, own_k, own_v = attn.project(sequence, None)
            k, v = torch.cat([k, own_k], dim=1), torch.cat([v, own_v], dim=1)
        if attention_mask is not None and attention_mask.shape[-1] < k.shape[1]:
            attention_mask = F.pad(attention_mask, (0, k.shape[1] - attention_mask.shape[-1]))

        out = attn.attend(q, k, v, attention_mask)
        out = attn.merge(out)
        if residual.ndim == 4:
            out = out.transpose(1, 2).unflatten(2, residual.shape[2:])
        return out + residual


def _fused_anew(layer: Attention, incompatible_keys: Any) -> None:
    """After weights were loaded into a layer whose projections are fused."""
    if layer.fused_weight is not None:
        layer.fuse_projections()


def _as_sequence(x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
    """(batch, channels, height, width) or (batch, n, channels), normalised over channels, as (batch, n, channels)."""
    if x.ndim == 4:
        return (x if norm is None else norm(x)).flatten(2).transpose(1, 2)
    return x if norm is None else norm(x.transpose(1, 2)).transpose(1, 2)
