"""Linear layers that multiply in eight bits: whole numbers (int8) or floating point (fp8, e4m3).

A row of the input, which is a token, and a row of the weight, which is an output channel, each have a factor of their
own that brings their largest value to the largest of the type (int8: arXiv:2208.07339, fp8: arXiv:2209.05433). The
weights stay in the model as they are; their eight bits lie beside them and follow when they are changed. Results differ
from exact ones, so this is used only where it is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from calotype.acceleration.row_scales import dequantised, quantised
from calotype.acceleration.state import everything
from calotype.adapters.model import is_strength_hook
from calotype.core.errors import InputError
from calotype.nn.attention import Attention

MULTIPLE = 16
"""What both sides of a weight have to be divisible by, for the products of GPUs."""
FEWEST = 32
"""Rows of the input below which a product is not worth the work, and below which GPUs' products in int8 do not go."""


def check(kind: str, place: torch.device) -> None:
    """Raise ``InputError`` where a device cannot multiply in this type."""
    if kind != "fp8":
        return
    if place.type != "cuda":
        what = f"this model is on {place.type}"
    else:
        major, minor = torch.cuda.get_device_capability(place)
        if (major, minor) >= (9, 0):
            return
        what = f"{torch.cuda.get_device_name(place)} has {major}.{minor}"
    raise InputError(
        f"linears='fp8' needs an NVIDIA GPU of compute capability 9.0 (Hopper) or newer, and {what}; take "
        f"linears='int8'."
    )


@dataclass
class Weight:
    """A weight (out, in) in eight bits, and the factor of each output channel (out, 1) in float32."""

    source: Tensor
    values: Tensor
    scales: Tensor
    stamp: tuple[int, int]

    @classmethod
    def of(cls, source: Tensor, kind: str) -> Weight:
        """The weight as it is now."""
        return cls(source, *quantised(source.detach(), kind), stamp_of(source))

    def follow(self, kind: str) -> bool:
        """Take over what has been changed in place; False if the weight is not where it was, or of another type."""
        now = stamp_of(self.source)
        if now == self.stamp:
            return True
        if now[0] != self.stamp[0] or self.source.device != self.values.device:
            return False
        values, scales = quantised(self.source.detach(), kind)
        self.values.copy_(values)  # whose memory captured work reads
        self.scales.copy_(scales)
        self.stamp = now
        return True


def stamp_of(source: Tensor) -> tuple[int, int]:
    """Where a tensor is, and how often it has been changed in place as far as PyTorch counts that."""
    return source.data_ptr(), 0 if source.is_inference() else source._version


class Products:
    """The weights of a model's linear layers in eight bits, for all calls of the model."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.table: dict[int, Weight] = {}
        self.linears = 0
        """How many linear layers the model has."""
        self.why: str | None = None
        self._lock = threading.RLock()

    @contextmanager
    def within(self, model: nn.Module, looks: bool) -> Iterator[None]:
        """Within this, in this thread, the model's linear layers multiply in eight bits.

        ``looks``: the model may not consist of what it did.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if looks or not self.table:
                self._look(model)
            for key, weight in self.table.items():
                if not weight.follow(self.kind):
                    self.table[key] = Weight.of(weight.source, self.kind)
            table = self.table
        if not table:
            yield
            return
        with Instead(table, self.kind):
            yield

    def _look(self, model: nn.Module) -> None:
        """Find the weights; of those that are known the eight bits are kept."""
        self.why = next(filter(None, map(_obstacle, model.modules())), None)
        found = [] if self.why else weights_of(model)
        self.linears = sum(type(part) is nn.Linear for part in everything(model))
        if [id(one) for one in found] != list(self.table):
            self.table = {
                id(one): self.table[id(one)] if id(one) in self.table else Weight.of(one, self.kind)
                for one in found
            }

    def report(self) -> str:
        """What is computed so."""
        if self.why is not None:
            return f"no linear layers in {self.kind}: {self.why}"
        return f"{len(self.table)} of {self.linears or 'its'} linear layers in {self.kind}"


def _obstacle(part: nn.Module) -> str | None:
    """Why the weights of a part of a model are left to be as they are, if so."""
    own = part.__dict__
    if own.get("_compiled_call_impl") is not None:
        return "it is compiled"
    if not all(is_strength_hook(hook) for hook in own["_forward_pre_hooks"].values()):
        return "hooks are on it before its calls, as offloading puts them there"
    return None


def weights_of(model: nn.Module) -> list[Tensor]:
    """The weights of linear layers whose products are worth it: not those that read the prompt, which is short."""
    short = {
        id(getattr(part, name))
        for part in model.modules()
        if isinstance(part, Attention) and part.is_cross_attention
        for name in ("to_k", "to_v")
    }
    return [
        part.weight
        for part in everything(model)
        if type(part) is nn.Linear
        and id(part) not in short
        and not any(side % MULTIPLE for side in part.weight.shape)
        and part.weight.device.type != "meta"
    ]


class Instead(TorchFunctionMode):
    """Within this, products with the weights of a table are computed in eight bits."""

    def __init__(self, table: dict[int, Weight], kind: str) -> None:
        super().__init__()
        self.table, self.kind = table, kind

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs:
            x, source, bias = (*args, None)[:3]
            weight = self.table.get(id(source))
            if (
                weight is not None
                and weight.values.device == x.device
                and x.numel() >= FEWEST * x.shape[-1]
                and not torch.is_grad_enabled()
            ):
                return product(x, weight, bias, self.kind)
        return func(*args, **(kwargs or {}))


def product(x: Tensor, weight: Weight, bias: Tensor | None, kind: str) -> Tensor:
    """``x`` (…, in) times the weight, of the type of ``x``."""
    values, scales = quantised(x.reshape(-1, x.shape[-1]), kind)
    if kind == "int8":
        sums = torch._int_mm(values, weight.values.t())
        out = dequantised(sums, scales, weight.scales, bias, x.dtype)
    else:
        inside = bias if x.dtype == torch.bfloat16 else None
        out = torch._scaled_mm(
            values,
            weight.values.t(),
            scale_a=scales,
            scale_b=weight.scales.t(),
            bias=inside,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        if x.dtype != torch.bfloat16:
            out = out.to(x.dtype) if bias is None else out + bias
    return out.to(x.dtype).unflatten(0, x.shape[:-1])


def twin(x: Tensor, weight: Weight, bias: Tensor | None, kind: str) -> Tensor:
    """What :func:`product` computes, with the rounded values in float32: for devices that have no such products."""
    values, scales = quantised(x.reshape(-1, x.shape[-1]), kind)
    out = (values.float() @ weight.values.float().t()) * scales * weight.scales.t()
    out = out if bias is None else out + bias.float()
    return out.to(x.dtype).unflatten(0, x.shape[:-1])
