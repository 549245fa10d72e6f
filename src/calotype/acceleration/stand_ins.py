"""What is computed in the place of the blocks' plain procedures: the same, in fewer passes over memory.

Each stand-in covers the configurations that it says and hands all others to the plain procedure. The parts that hold
weights are still asked by name, so adapters that stand in a layer's place are heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from calotype.acceleration.convolutions import Convolutions
from calotype.acceleration.layers import as_sequence, covered, is_hooked, is_plain, on_sequence, packed
from calotype.acceleration.numbers import Amounts
from calotype.acceleration.options import Options
from calotype.acceleration.sequences import Addend, Product, Sequences
from calotype.acceleration.times import Shifts, TimeReaders, Times
from calotype.acceleration.usable import Kernels
from calotype.adapters.layer import Adapted
from calotype.nn.activations import GEGLU
from calotype.nn.attention import Attention
from calotype.nn.norms import activated_norm
from calotype.nn.replaceable import Table
from calotype.nn.resampling import Upsample2D
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.stage import of_joined
from calotype.nn.transformer import BasicTransformerBlock, SpatialTransformer

Projected = tuple[Tensor, Tensor, Tensor]


def plain(procedure: Callable[..., Any]) -> Callable[..., Any]:
    """The procedure that a marked one is when nothing stands in its place."""
    return procedure.__wrapped__  # type: ignore[attr-defined]


class StandIns:
    """The table of one run of a model: what it remembers belongs to that run."""

    def __init__(
        self,
        options: Options,
        kernels: Kernels | None,
        prompt: Prompt | None = None,
        readers: Readers | None = None,
        amounts: Amounts | None = None,
        times: Times | None = None,
        time_readers: TimeReaders | None = None,
    ) -> None:
        self.options, self.kernels, self.prompt, self.readers = options, kernels, prompt, readers
        self.amounts, self.time_readers = amounts, time_readers
        self.shifts = None if times is None else Shifts(times)
        self.convolutions = (
            None if kernels is None else Convolutions(kernels, options.convolutions, options.products)
        )
        self.sequences = None if kernels is None else Sequences(kernels, options.products)
        self._unmerged: Attention | None = None
        self._activated: tuple[Tensor, Tensor] | None = None

    @property
    def table(self) -> Table:
        """What stands in the place of what."""
        found: dict[Callable[..., Any], Callable[..., Any]] = {Attention.project: self.project}
        if self.amounts is not None:
            found[Adapted.amount] = self.amounts.of
        own = (self.options.short or self.options.narrow or self.options.wide) and self.kernels is not None
        if self.options.attention or own:
            found[Attention.attend] = self.attend
        if self.kernels is not None:
            found |= {
                Attention.merge: self.merge,
                ResnetBlock2D.forward: self.resnet,
                of_joined: self.of_joined,
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
            queries = layer.to_q(x) if self.sequences is None else self.sequences.through(layer.to_q, x)
            return queries, *self.prompt.keys_and_values(layer)
        if (
            context is None
            and not layer.is_cross_attention
            and self.options.packed
            and (weights := packed(layer)) is not None
        ):
            together = F.linear(x, *weights) if self.sequences is None else self.sequences.linear(x, *weights)
            q, k, v = together.chunk(3, dim=-1)
            return q, k, v
        return plain(Attention.project)(layer, x, context)

    def merge(self, layer: Attention, attended: Tensor) -> Tensor | Product:
        """The heads' results as the layer gives them; in a transformer block a product that is left for later."""
        if layer is self._unmerged and self.sequences is not None:
            return self.sequences.product(layer.to_out[0], attended)  # type: ignore[return-value]
        found: Tensor = plain(Attention.merge)(layer, attended)
        return found

    @contextmanager
    def unmerged(self, layer: Attention) -> Iterator[None]:
        """Within this the layer may give a product in place of a tensor."""
        self._unmerged = layer
        try:
            yield
        finally:
            self._unmerged = None

    def attend(self, layer: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.options.wide and self._is_wide(layer, q, k, bias):
            return self.wide(q, k, v, layer.scale)
        if self.options.short and self._is_short(layer, q, k, v, bias):
            assert self.kernels is not None
            found: Tensor = self.kernels.short_attention.fused(q, k, v, layer.heads, layer.scale)
            return found
        if self.options.narrow and self._is_narrow(layer, q, k, v, bias):
            assert self.kernels is not None
            narrow: Tensor = self.kernels.narrow_attention.fused(q, k, v, layer.heads, layer.scale)
            return narrow
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

    def _is_short(self, layer: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
        """Whether this is attention to a prompt that a program of the kernel can hold."""
        return (
            self.kernels is not None
            and layer.is_cross_attention
            and bias is None
            and self.kernels.take(q, k, v)
            and self.kernels.short_attention.fit(q, k, v, layer.heads)
        )

    def _is_narrow(self, layer: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
        """Whether this is attention of heads of a width that the kernel computes quicker than PyTorch."""
        return (
            self.kernels is not None
            and bias is None
            and self.kernels.take(q, k, v)
            and self.kernels.narrow_attention.fit(q, k, v, layer.heads, layer.scale)
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
        beside: Tensor | None = None,
    ) -> Tensor:
        """A group norm of ``x`` + ``shift`` (batch, channels) + ``offset`` (channels,), and SiLU if asked.

        ``beside`` has the channels that follow those of ``x``.
        """
        assert isinstance(norm, nn.GroupNorm)
        assert self.kernels is not None
        module = self.kernels.group_norm
        fits = self.kernels.take(x, shift, offset, norm.weight) and x.dtype == norm.weight.dtype
        more = {"shift": shift, "offset": offset, "beside": beside}
        found: Tensor = (module.fused if fits else module.plain)(
            x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=silu, **more
        )
        return found

    def resnet(self, block: ResnetBlock2D, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Norm and activation in one kernel, with the first convolution's bias and the time; the second's bias and the
        sum with it, or in one."""
        if not _covered(block):
            return plain(ResnetBlock2D.forward)(block, x, temb)
        return self.refined(block, x, None, temb)

    def of_joined(self, block: nn.Module, maps: list[Tensor], temb: Tensor | None) -> Tensor:
        """The same of two maps that are never joined: the first norm and the shortcut read them where they lie."""
        assert self.convolutions is not None
        if (
            len(maps) == 2
            and type(block) is ResnetBlock2D
            and not (is_hooked(block) or block.up or block.down)
            and _covered(block)
            and self.convolutions.take_joined(block.conv_shortcut, *maps)
        ):
            return self.refined(block, maps.pop(0), maps.pop(), temb)
        found: Tensor = plain(of_joined)(block, maps, temb)
        return found

    def refined(self, block: ResnetBlock2D, x: Tensor, beside: Tensor | None, temb: Tensor | None) -> Tensor:
        """A block that is covered; ``beside`` has the channels that follow those of ``x``."""
        assert self.convolutions is not None
        h = self.norm(x, block.norm1, silu=True, beside=beside)
        if block.up or block.down:
            x, h = block._resample(x), block._resample(h)
        h, offset = self.convolutions.without_bias(block.conv1, h)
        shift = None
        if temb is not None and block.time_emb_proj is not None:
            shift = self.shift(block, block.time_emb_proj, temb)
        h = self.norm(h, block.norm2, silu=True, shift=shift, offset=offset)
        other = None
        if block.conv_shortcut is not None:
            x, other = self.convolutions.shortcut(block.conv_shortcut, x, beside)
        h = self.convolutions.added(block.conv2, h, x, other)
        return h if block.output_scale_factor == 1.0 else h / block.output_scale_factor

    def shift(self, block: ResnetBlock2D, projection: nn.Module, temb: Tensor) -> Tensor:
        """What a block adds for the time: of those that activate its embedding, from one launch where that is known."""
        if block.skip_time_act:
            return projection(temb)
        if self.time_readers is not None:
            self.time_readers.note(block, temb)
        activated = self.activated(temb)
        found = None if self.shifts is None else self.shifts.known(block, temb, activated)
        return projection(activated) if found is None else found

    def upsample(self, module: Upsample2D, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The larger map written in one pass, and its convolution's bias in another or with it."""
        assert self.kernels is not None and self.convolutions is not None
        double = (2 * x.shape[-2], 2 * x.shape[-1])
        if (
            module.use_conv_transpose
            or x.shape[1] != module.channels
            or (output_size is not None and tuple(output_size) != double)
            or not self.kernels.take(x)
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return plain(Upsample2D.forward)(module, x, output_size)
        larger: Tensor = self.kernels.pointwise.twice(x)
        return larger if module.conv is None else self.convolutions.added(module.conv, larger, None)

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
        proj, module = layer.proj, self.kernels.gate_products
        if (
            self.options.gates
            and is_plain(proj, nn.Linear)
            and proj.bias is not None
            and self.kernels.take(x, proj.weight, proj.bias)
            and (fused := module.fit(x, proj.weight, proj.bias)) is not None
        ):
            return fused(x, proj.weight, proj.bias)
        h = proj(x)
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
        assert self.sequences is not None
        size = hidden_states.shape[2:]
        h: Tensor | None = None
        more: Addend = self.of_pixels(
            module.proj_in, as_sequence(self.norm(hidden_states, module.norm)), size
        )
        for block in module.transformer_blocks:
            assert isinstance(block, BasicTransformerBlock)
            if not covered(block):
                h = self.sequences.sum(h, more)
                more = None
                h = block(
                    h, attention_mask, encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs
                )
                continue
            h, tokens = self.sequences.normalised(h, more, block.norm1)
            context = encoder_hidden_states if block.only_cross_attention else None
            more = self.attention(block.attn1, tokens, context, attention_mask, kwargs)
            if block.attn2 is not None and block.norm2 is not None:
                h, tokens = self.sequences.normalised(h, more, block.norm2)
                more = self.attention(
                    block.attn2, tokens, encoder_hidden_states, encoder_attention_mask, kwargs
                )
            h, tokens = self.sequences.normalised(h, more, block.norm3)
            more = self.sequences.fed(block.ff, tokens)
        found = self.of_pixels(module.proj_out, self.sequences.sum(h, more), size)
        return self.sequences.sum(as_sequence(hidden_states), found).transpose(1, 2).unflatten(2, size)

    def of_pixels(self, layer: nn.Module, h: Tensor, size: torch.Size) -> Tensor | Product:
        """A matrix or a convolution of one pixel of a sequence of pixels, left for later where it can be."""
        assert self.sequences is not None
        product = self.sequences.product(layer, h)
        return on_sequence(layer, h, size) if product is None else product

    def attention(
        self,
        layer: Attention,
        tokens: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Addend:
        """What a layer gives, or what is left of that for later."""
        assert self.sequences is not None
        later = not kwargs.keys() - {"scale"} and self.sequences.merges(layer)
        with self.unmerged(layer) if later else nullcontext():
            found: Addend = layer(tokens, encoder_hidden_states=context, attention_mask=mask, **kwargs)
        return found


def _covered(block: ResnetBlock2D) -> bool:
    """Whether the block is one of Stable Diffusion's: the time is added, SiLU, norms with weights."""
    return (
        block.time_embedding_norm == "default"
        and type(block.nonlinearity) is nn.SiLU
        and all(is_plain(norm, nn.GroupNorm) for norm in (block.norm1, block.norm2))
        and not (block.training and block.dropout.p)
    )


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
    """Keys and values of one context for the ``layers`` that read it, computed once, in memory that stays.

    With ``kernels`` those of plain layers come from one launch, which reads weights where they are now.
    """

    def __init__(self, context: Tensor, layers: Iterable[Attention], kernels: Kernels | None) -> None:
        self.context, self.layers, self.kernels = context, list(layers), kernels
        self.found: dict[Attention, tuple[Tensor, Tensor]] = {}
        self.together: dict[Attention, list[Tensor]] = {}
        """Weights of keys and values of the layers whose products are computed together."""
        self.table: Any = None
        if kernels is not None and kernels.take(context) and context.is_contiguous():
            weights = {layer: _weights(layer) for layer in self.layers}
            fits = kernels.products.fit
            self.together = {
                layer: pair
                for layer, pair in weights.items()
                if pair is not None and all(fits(context, weight) for weight in pair)
            }
            if self.together:
                self.table = kernels.products.Table(context, list(self.together.values()))

    def keys_and_values(self, layer: Attention) -> tuple[Tensor, Tensor]:
        """Keys and values of the context in this layer."""
        if layer not in self.found:
            self.found[layer] = self._alone(layer)
        return self.found[layer]

    def compute(self) -> None:
        """Compute those of all layers, the first time into new memory and later into the same."""
        if self.table is not None and self.kernels is not None:
            products = self.kernels.products.fused(self.context, self.table)
            self.found |= {layer: (k, v) for layer, (k, v) in zip(self.together, products, strict=True)}
        for layer in self.layers:
            if layer in self.together:
                continue
            new = self._alone(layer)
            if layer not in self.found:
                self.found[layer] = new
            else:
                torch._foreach_copy_(self.found[layer], new)

    def memory(self) -> list[Any]:
        """What was computed, and what that is computed with beside the context and the weights."""
        return [self.table, *self.found.values()]

    def _alone(self, layer: Attention) -> tuple[Tensor, Tensor]:
        if layer.is_cross_attention and (weights := packed(layer)) is not None:
            k, v = F.linear(self.context, *weights).chunk(2, dim=-1)
            return k, v
        assert layer.to_k is not None and layer.to_v is not None
        return layer.to_k(self.context), layer.to_v(self.context)


def _weights(layer: Attention) -> list[Tensor] | None:
    """The weights of keys and values, where nothing but these decides them."""
    parts = layer.to_k, layer.to_v
    if not all(is_plain(part, nn.Linear) and part.bias is None for part in parts):  # type: ignore[union-attr]
        return None
    return [part.weight for part in parts]  # type: ignore[union-attr]


_SCORES = 2**24
"""Scores that are computed at a time, 64 MiB."""
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
