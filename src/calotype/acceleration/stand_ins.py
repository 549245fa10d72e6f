"""What is computed in the place of the blocks' plain procedures: the same, in fewer passes over memory.

Each stand-in covers the configurations that it says and hands all others to the plain procedure. The parts that hold
weights are still asked by name, so adapters that stand in a layer's place are heard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from calotype.acceleration.numbers import Amounts
from calotype.acceleration.options import Options
from calotype.acceleration.state import joined, siblings
from calotype.adapters.layer import Adapted
from calotype.nn.activations import GEGLU
from calotype.nn.attention import Attention
from calotype.nn.norms import activated_norm
from calotype.nn.replaceable import Table
from calotype.nn.resampling import Upsample2D
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.transformer import BasicTransformerBlock, SpatialTransformer

logger = logging.getLogger(__name__)

Projected = tuple[Tensor, Tensor, Tensor]


def plain(procedure: Callable[..., Any]) -> Callable[..., Any]:
    """The procedure that a marked one is when nothing stands in its place."""
    return procedure.__wrapped__  # type: ignore[attr-defined]


class Kernels:
    """The kernels where they can run on a tensor; the same in PyTorch elsewhere."""

    def __init__(
        self, group_norm: ModuleType, layer_norm: ModuleType, pointwise: ModuleType, softmax: ModuleType
    ) -> None:
        self.group_norm, self.layer_norm = group_norm, layer_norm
        self.pointwise, self.softmax = pointwise, softmax

    @staticmethod
    def take(*tensors: Tensor | None) -> bool:
        """Whether kernels may read these tensors."""
        return all(x is None or (x.is_cuda and x.dtype in _DTYPES) for x in tensors)


_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@cache
def kernels_for(device: torch.device) -> Kernels | None:
    """The Triton kernels, where Triton is and what it builds computes on the device what PyTorch does."""
    try:
        import triton

        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
            raise ImportError(f"Triton {triton.__version__} is too old")
        from calotype.acceleration.kernels import group_norm, layer_norm, pointwise, softmax

        if device.type == "cuda":
            with torch.cuda.device(device):
                x = torch.linspace(-2, 2, 64, device=device, dtype=torch.float32).view(2, 32)
                w = torch.ones(32, device=device)
                found, right = layer_norm.fused(x, w, w, 1e-5)[1], layer_norm.plain(x, w, w, 1e-5)[1]
                torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("Norms, gates and sums are computed without Triton: %s.", reason)
        return None
    return Kernels(group_norm, layer_norm, pointwise, softmax)


class StandIns:
    """The table of one run of a model: what it remembers belongs to that run."""

    def __init__(
        self,
        options: Options,
        kernels: Kernels | None,
        prompt: Prompt | None = None,
        readers: Readers | None = None,
        amounts: Amounts | None = None,
    ) -> None:
        self.options, self.kernels, self.prompt, self.readers = options, kernels, prompt, readers
        self.amounts = amounts
        self._activated: tuple[Tensor, Tensor] | None = None

    @property
    def table(self) -> Table:
        """What stands in the place of what."""
        found: dict[Callable[..., Any], Callable[..., Any]] = {Attention.project: self.project}
        if self.amounts is not None:
            found[Adapted.amount] = self.amounts.of
        if self.options.attention or (self.options.wide and self.kernels is not None):
            found[Attention.attend] = self.attend
        if self.kernels is not None:
            found |= {
                ResnetBlock2D.forward: self.resnet,
                SpatialTransformer.forward: self.transformer,
                GEGLU.forward: self.geglu,
                Upsample2D.forward: self.upsample,
                activated_norm: self.activated_norm,
            }
        return found

    # -- attention ---------------------------------------------------------------------------------------------

    def project(self, layer: Attention, x: Tensor, context: Tensor | None) -> Projected:
        if self.readers is not None:
            self.readers.note(layer, context)
        if context is not None and self.prompt is not None and context is self.prompt.context:
            return layer.to_q(x), *self.prompt.keys_and_values(layer)
        if (
            context is None
            and not layer.is_cross_attention
            and self.options.packed
            and (weights := packed(layer)) is not None
        ):
            q, k, v = F.linear(x, *weights).chunk(3, dim=-1)
            return q, k, v
        return plain(Attention.project)(layer, x, context)

    def attend(self, layer: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.options.wide and self._is_wide(layer, q, k, bias):
            return self.wide(q, k, v, layer.scale)
        if not self.options.attention:
            return plain(Attention.attend)(layer, q, k, v, bias)
        backends = [_BACKENDS[name] for name in self.options.attention]
        with sdpa_kernel(backends, set_priority=True) if q.is_cuda else nullcontext():
            return plain(Attention.attend)(layer, q, k, v, bias)

    def _is_wide(self, layer: Attention, q: Tensor, k: Tensor, bias: Tensor | None) -> bool:
        """Whether this is attention of one head so wide that PyTorch's quick kernels do not take it."""
        return (
            self.kernels is not None
            and self.kernels.take(q)
            and bias is None
            and layer.heads == 1
            and q.shape[-1] > 256
            and q.dtype in (torch.float16, torch.bfloat16)
            and k.shape[1] <= self.kernels.softmax.WIDEST
        )

    def wide(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Softmax(Q Kᵀ) V of one head, some queries at a time, so that their scores stay near; scores in float32."""
        assert self.kernels is not None
        keys = k.transpose(1, 2)
        found = []
        for some in q.split(max(_SCORES // (len(q) * k.shape[1]), 128), dim=1):
            scores = torch.bmm(some, keys, out_dtype=torch.float32)
            found.append(torch.bmm(self.kernels.softmax.fused(scores, scale, q.dtype), v))
        return torch.cat(found, dim=1)

    # -- blocks ------------------------------------------------------------------------------------------------

    def norm(
        self,
        x: Tensor,
        norm: nn.Module,
        silu: bool = False,
        shift: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """A group norm of ``x`` + ``shift`` (batch, channels) + ``offset`` (channels,), and SiLU if asked."""
        assert isinstance(norm, nn.GroupNorm)
        assert self.kernels is not None
        module = self.kernels.group_norm
        fits = self.kernels.take(x, shift, offset, norm.weight) and x.dtype == norm.weight.dtype
        found: Tensor = (module.fused if fits else module.plain)(
            x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=silu, shift=shift, offset=offset
        )
        return found

    def resnet(self, block: ResnetBlock2D, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Norm and activation in one kernel, with the first convolution's bias and the time; biases and sum in one."""
        norms = (block.norm1, block.norm2)
        if (
            block.time_embedding_norm != "default"
            or type(block.nonlinearity) is not nn.SiLU
            or any(not is_plain(norm, nn.GroupNorm) for norm in norms)
            or (block.training and block.dropout.p)
        ):
            return plain(ResnetBlock2D.forward)(block, x, temb)
        assert self.kernels is not None
        h = self.norm(x, block.norm1, silu=True)
        if block.up or block.down:
            x, h = block._resample(x), block._resample(h)
        h, offset = without_bias(block.conv1, h)
        shift = None
        if temb is not None and block.time_emb_proj is not None:
            shift = block.time_emb_proj(temb if block.skip_time_act else self.activated(temb))
        h = self.norm(h, block.norm2, silu=True, shift=shift, offset=offset)
        h, bias = without_bias(block.conv2, h)
        other = None
        if block.conv_shortcut is not None:
            x, other = without_bias(block.conv_shortcut, x)
        pointwise = self.kernels.pointwise
        fits = self.kernels.take(h, x, bias, other) and h.dtype == x.dtype
        h = (pointwise.residual if fits else pointwise.plain_residual)(h, x, bias, other)
        return h if block.output_scale_factor == 1.0 else h / block.output_scale_factor

    def upsample(self, module: Upsample2D, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The larger map written in one pass, and its convolution's bias in another."""
        assert self.kernels is not None
        double = (2 * x.shape[-2], 2 * x.shape[-1])
        if (
            module.use_conv_transpose
            or x.shape[1] != module.channels
            or (output_size is not None and tuple(output_size) != double)
            or not self.kernels.take(x)
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return plain(Upsample2D.forward)(module, x, output_size)
        pointwise = self.kernels.pointwise
        larger: Tensor = pointwise.twice(x)
        if module.conv is None:
            return larger
        h, bias = without_bias(module.conv, larger)
        if bias is None:
            return h
        fits = self.kernels.take(h, bias)
        biased: Tensor = (pointwise.residual if fits else pointwise.plain_residual)(h, None, bias)
        return biased

    def activated(self, temb: Tensor) -> Tensor:
        """SiLU of the time's embedding, computed once for all blocks."""
        if self._activated is None or self._activated[0] is not temb:
            self._activated = temb, F.silu(temb)
        return self._activated[1]

    def activated_norm(self, x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
        if is_plain(norm, nn.GroupNorm) and type(act) is nn.SiLU and x.ndim == 4:
            return self.norm(x, norm, silu=True)
        return plain(activated_norm)(x, norm, act)

    def geglu(self, layer: GEGLU, x: Tensor) -> Tensor:
        assert self.kernels is not None
        h = layer.proj(x)
        pointwise = self.kernels.pointwise
        return (pointwise.geglu if self.kernels.take(h) else pointwise.plain_geglu)(h)

    def transformer(
        self,
        module: SpatialTransformer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """The pixels stay a sequence from norm to sum; what a layer finds is added where the next norm reads it."""
        kwargs = cross_attention_kwargs or {}
        if not is_plain(module.norm, nn.GroupNorm) or "gligen" in kwargs:
            return plain(SpatialTransformer.forward)(
                module, hidden_states, encoder_hidden_states, attention_mask, encoder_attention_mask,
                cross_attention_kwargs,
            )  # fmt: skip
        size = hidden_states.shape[2:]
        h = as_sequence(self.norm(hidden_states, module.norm))
        h = on_sequence(module.proj_in, h, size)
        more: Tensor | None = None
        for block in module.transformer_blocks:
            assert isinstance(block, BasicTransformerBlock)
            if not covered(block):
                h = h if more is None else h + more
                more = None
                h = block(
                    h, attention_mask, encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs
                )
                continue
            h, tokens = self.layer_norm(h, block.norm1, more)
            context = encoder_hidden_states if block.only_cross_attention else None
            more = block.attn1(tokens, encoder_hidden_states=context, attention_mask=attention_mask, **kwargs)
            if block.attn2 is not None and block.norm2 is not None:
                h, tokens = self.layer_norm(h, block.norm2, more)
                more = block.attn2(
                    tokens,
                    encoder_hidden_states=encoder_hidden_states,
                    attention_mask=encoder_attention_mask,
                    **kwargs,
                )
            h, tokens = self.layer_norm(h, block.norm3, more)
            more = block.ff(tokens)
        h = h if more is None else h + more
        return on_sequence(module.proj_out, h, size).transpose(1, 2).unflatten(2, size) + hidden_states

    def layer_norm(self, x: Tensor, norm: nn.Module, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x`` + ``more``, and that normalised."""
        assert isinstance(norm, nn.LayerNorm)
        assert self.kernels is not None
        module = self.kernels.layer_norm
        fits = self.kernels.take(x, more, norm.weight) and (more is None or more.dtype == x.dtype)
        found: tuple[Tensor, Tensor] = (module.fused if fits else module.plain)(
            x, norm.weight, norm.bias, norm.eps, more
        )
        return found


class Readers:
    """The layers that read a call's prompt, noted in the order in which they do."""

    def __init__(self, contexts: Sequence[Tensor]) -> None:
        self.contexts = contexts
        self.layers: dict[Attention, None] = {}

    def note(self, layer: Attention, context: Tensor | None) -> None:
        """Note the layer if it reads the prompt."""
        if any(context is one for one in self.contexts):
            self.layers[layer] = None

    def done(self) -> Readers:
        """The same without the prompt, so that it is not kept."""
        self.contexts = ()
        return self


class Prompt:
    """Keys and values of one context, computed once for each layer."""

    def __init__(self, context: Tensor) -> None:
        self.context = context
        self.found: dict[Attention, tuple[Tensor, Tensor]] = {}

    def keys_and_values(self, layer: Attention) -> tuple[Tensor, Tensor]:
        """Keys and values of the context in this layer."""
        if layer not in self.found:
            self.found[layer] = self.computed(layer)
        return self.found[layer]

    def computed(self, layer: Attention) -> tuple[Tensor, Tensor]:
        """The same, computed now."""
        if layer.is_cross_attention and (weights := packed(layer)) is not None:
            k, v = F.linear(self.context, *weights).chunk(2, dim=-1)
            return k, v
        assert layer.to_k is not None and layer.to_v is not None
        return layer.to_k(self.context), layer.to_v(self.context)


_SCORES = 2**24
"""Scores that are computed at a time, 64 MiB."""
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether this is a layer of PyTorch's with weights of its own and nothing hooked to it."""
    return (
        type(module) is kind
        and getattr(module, "weight", None) is not None
        and not (module._forward_hooks or module._forward_pre_hooks)
    )


def covered(block: BasicTransformerBlock) -> bool:
    """Whether the block is one of Stable Diffusion's: no places, no grounding, norms with weights."""
    norms = [norm for norm in (block.norm1, block.norm2, block.norm3) if norm is not None]
    hooked = block._forward_hooks or block._forward_pre_hooks
    return block.pos_embed is None and not hooked and all(is_plain(norm, nn.LayerNorm) for norm in norms)


def without_bias(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution's result without its bias, and the bias; what is no plain convolution computes all itself."""
    if not is_plain(conv, nn.Conv2d) or conv.bias is None:
        return conv(x), None
    assert isinstance(conv, nn.Conv2d)
    return conv._conv_forward(x, conv.weight, None), conv.bias


def as_sequence(x: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, height · width, channels), a view of a channels-last map."""
    return x.flatten(2).transpose(1, 2)


def on_sequence(layer: nn.Module, h: Tensor, size: torch.Size) -> Tensor:
    """A 1x1 convolution or a matrix on (batch, pixels, channels)."""
    if is_plain(layer, nn.Conv2d):
        return F.linear(h, layer.weight.flatten(1), layer.bias)  # type: ignore[arg-type, operator]
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
