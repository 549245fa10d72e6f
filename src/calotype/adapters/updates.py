"""Updates ΔW of a layer's weight, in the forms in which they are trained, and what a layer's output gains by them.

Their tensors are buffers or, in training, parameters; neither is saved with the model. The factor α/r is multiplied in
when they are made, or stands apart (:class:`Scaled`) where the factors are trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.scaling import scaled

Layer = Any
"""An ``nn.Linear`` or an ``nn.Conv2d`` without groups."""
Strength = float | torch.Tensor
"""A number, or a tensor (1,) in float32 that holds one."""


class Update(nn.Module, ABC):
    """ΔW of one layer; abstract."""

    @abstractmethod
    def delta(self, layer: Layer) -> torch.Tensor:
        """ΔW in the shape of the layer's weight, float32, at strength 1."""

    @abstractmethod
    def gain(self, layer: Layer, x: torch.Tensor, y: torch.Tensor, strength: Strength) -> torch.Tensor:
        """What is added to the layer's output ``y`` for its input ``x``."""

    @abstractmethod
    def change(self, layer: Layer, strength: Strength) -> torch.Tensor:
        """What is added to the layer's weight where the update becomes a part of it, float32."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by their names in files, without those of the layer; with them α is the rank."""

    @property
    def in_training(self) -> bool:
        """Whether the tensors are parameters, which an optimiser holds."""
        return next(self.parameters(), None) is not None

    def takes(self, other: Update) -> bool:
        """Whether :meth:`become` can be: the other has tensors of the same names and shapes."""
        mine, its = self.tensors(), other.tensors()
        return mine.keys() == its.keys() and all(mine[name].shape == its[name].shape for name in mine)

    def become(self, other: Update) -> None:
        """Take the values of ``other``; the tensors stay where they are."""
        for name, tensor in other.tensors().items():
            self.tensors()[name].copy_(tensor)

    def owned(self) -> Update:
        """Itself, with copies in the place of tensors that a mapped file or the caller may hold too."""
        for part in self.modules():
            for name, tensor in part._buffers.items():
                part._buffers[name] = None if tensor is None else tensor.clone()
        return self

    def _hold(self, **tensors: torch.Tensor) -> None:
        """Keep tensors under these names; parameters stay parameters."""
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor, persistent=False)

    def _save_to_state_dict(self, *args: Any) -> None:
        """Parameters, which cannot be declared to be left out, are no part of the model's state either."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """See above."""


class LowRank(Update):
    """ΔW = B·A, B (out, r) and A (r, in, …kernel) (LoRA, https://arxiv.org/abs/2106.09685; LoCon in convolutions)."""

    down: torch.Tensor
    up: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        self._hold(down=down, up=up)

    @property
    def rank(self) -> int:
        """r, with rows of zeros that were added counted."""
        return self.down.shape[0]

    def padded(self, rank: int) -> LowRank:
        """The same update at a higher rank, by zeros; itself at its own."""
        more = rank - self.rank
        if more <= 0:
            return self
        down = torch.cat([self.down, self.down.new_zeros(more, *self.down.shape[1:])])
        up = torch.cat([self.up, self.up.new_zeros(self.up.shape[0], more, *self.up.shape[2:])], dim=1)
        return LowRank(down, up)

    def delta(self, layer: Layer) -> torch.Tensor:
        down, up = self.down.float(), self.up.float()
        return (up.flatten(1) @ down.flatten(1)).unflatten(1, layer.weight.shape[1:])

    def gain(self, layer: Layer, x: torch.Tensor, y: torch.Tensor, strength: Strength) -> torch.Tensor:
        inner = through(layer, x, self.down)
        if isinstance(
            strength, torch.Tensor
        ):  # where it costs least; a number is the last factor, as in PEFT
            inner = scaled(inner, strength)
        outer = F.linear(inner, self.up) if self.up.ndim == 2 else F.conv2d(inner, self.up)
        return outer if isinstance(strength, torch.Tensor) or strength == 1.0 else outer * strength

    def change(self, layer: Layer, strength: Strength) -> torch.Tensor:
        return self.delta(layer) * strength

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"lora_A.weight": self.down, "lora_B.weight": self.up}


class Replaced(Update):
    """ΔW = W' − W for a weight W' that takes the layer's place, perhaps with its bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self._hold(weight=weight)
        self.register_buffer("bias", bias, persistent=False)

    def delta(self, layer: Layer) -> torch.Tensor:
        return self.weight.float() - layer.weight.float()

    def gain(self, layer: Layer, x: torch.Tensor, y: torch.Tensor, strength: Strength) -> torch.Tensor:
        bias = layer.bias if self.bias is None else self.bias
        outer = through(layer, x, self.weight)
        return scaled((outer if bias is None else outer + bias) - y, strength)

    def change(self, layer: Layer, strength: Strength) -> torch.Tensor:
        if self.bias is not None:
            raise InputError(
                "Weights with a bias of their own cannot be made a part of the model's; leave them beside."
            )
        return self.delta(layer) * strength

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})


class Factored(Update):
    """ΔW from factors whose product is made anew each time; abstract."""

    def __init__(self, **factors: torch.Tensor) -> None:
        super().__init__()
        self._hold(**factors)

    def gain(self, layer: Layer, x: torch.Tensor, y: torch.Tensor, strength: Strength) -> torch.Tensor:
        outer = through(layer, x, self.delta(layer).to(x.dtype))
        return scaled(outer, strength)

    def change(self, layer: Layer, strength: Strength) -> torch.Tensor:
        return self.delta(layer) * strength

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.named_buffers(recurse=False))

    def _factor(self, whole: str, left: str, right: str, core: str) -> torch.Tensor:
        """A matrix or kernel that is stored whole, as a product of two, or as a core between them (Tucker)."""
        found = {name: tensor.float() for name, tensor in self.named_buffers(recurse=False)}
        if whole in found:
            return found[whole]
        a, b = found[left], found[right]
        if core in found:
            return torch.einsum("ij...,ip,jr->pr...", found[core], a, b)
        return (a @ b.flatten(1)).unflatten(1, b.shape[1:])


class Hadamard(Factored):
    """ΔW = (B₁A₁) ⊙ (B₂A₂): LoHa (https://arxiv.org/abs/2108.06098)."""

    def delta(self, layer: Layer) -> torch.Tensor:
        first = self._factor("", "hada_w1_a", "hada_w1_b", "hada_t1")
        second = self._factor("", "hada_w2_a", "hada_w2_b", "hada_t2")
        return (first * second).reshape(layer.weight.shape)


class Kronecker(Factored):
    """ΔW = W₁ ⊗ W₂: LoKr (https://arxiv.org/abs/2309.14859)."""

    def delta(self, layer: Layer) -> torch.Tensor:
        first = self._factor("lokr_w1", "lokr_w1_a", "lokr_w1_b", "")
        second = self._factor("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
        return torch.kron(first, second.contiguous()).reshape(layer.weight.shape)


class Scaled(Update):
    """ΔW = (α/r)·B·A with the factor apart, as B and A are trained; a part of the input's entries may be left out.

    ``dropout`` is that part, in training.
    """

    def __init__(self, factors: LowRank, factor: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.factors = factors
        self.factor = factor
        self.dropout = dropout

    def delta(self, layer: Layer) -> torch.Tensor:
        return self.factors.delta(layer) * self.factor

    def gain(self, layer: Layer, x: torch.Tensor, y: torch.Tensor, strength: Strength) -> torch.Tensor:
        x = F.dropout(x, self.dropout, self.training).to(self.factors.down.dtype)
        return self.factors.gain(layer, x, y, strength * self.factor).to(y.dtype)

    def change(self, layer: Layer, strength: Strength) -> torch.Tensor:
        return self.delta(layer) * strength

    def tensors(self) -> dict[str, torch.Tensor]:
        down, up = self.factors.down, self.factors.up
        return {"lora_A.weight": down, "lora_B.weight": up if self.factor == 1.0 else up * self.factor}


class Decomposed(Update):
    """W' = m·(W + ΔW)/‖W + ΔW‖ with ΔW of another update and magnitudes m: DoRA (https://arxiv.org/abs/2402.09353).

    ``magnitude`` has the weight's number of axes; all but one, along which the norms are taken apart, are 1.
    """

    magnitude: torch.Tensor

    def __init__(self, direction: Update, magnitude: torch.Tensor) -> None:
        super().__init__()
        self.direction = direction
        self._hold(magnitude=magnitude)

    def delta(self, layer: Layer) -> torch.Tensor:
        return self.change(layer, 1.0)

    def change(self, layer: Layer, strength: Strength) -> torch.Tensor:
        moved, factor = self._moved(layer, strength)
        return moved * factor - layer.weight.float()

    def gain(self, layer: Layer, x: torch.Tensor, y: torch.Tensor, strength: Strength) -> torch.Tensor:
        if self.magnitude.shape[0] == 1:  # one magnitude for each input
            return through(layer, x, self.change(layer, strength).to(x.dtype))
        _, factor = self._moved(layer, strength)
        factor = factor.flatten().to(x.dtype)
        if y.ndim == 4:
            factor = factor[:, None, None]
        if layer.bias is not None:
            y = y - (layer.bias[:, None, None] if y.ndim == 4 else layer.bias)
        return (factor - 1) * y + factor * self.direction.gain(layer, x, y, strength)

    def tensors(self) -> dict[str, torch.Tensor]:
        m = self.magnitude
        if m.shape[0] == 1:
            return {**self.direction.tensors(), "dora_scale": m}
        m = m.flatten() if m.ndim == 2 else m.view(1, -1, 1, 1)
        return {**self.direction.tensors(), "lora_magnitude_vector": m}

    def _moved(self, layer: Layer, strength: Strength) -> tuple[torch.Tensor, torch.Tensor]:
        """W + ΔW, and m/‖W + ΔW‖, in which the norm counts as a constant in training (section 4.3)."""
        moved = layer.weight.float() + self.direction.change(layer, strength)
        axes = [axis for axis, size in enumerate(self.magnitude.shape) if size == 1]
        return moved, self.magnitude.float() / torch.linalg.vector_norm(
            moved.detach(), dim=axes, keepdim=True
        )


def through(layer: Layer, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's map of ``x`` with another weight and no bias; a convolution keeps its stride and padding."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return layer._conv_forward(x, weight, None)


def with_rank(update: Update, rank: int) -> Update:
    """The update at a higher rank, if it is a product of two matrices."""
    if isinstance(update, LowRank):
        return update.padded(rank)
    if isinstance(update, Decomposed):
        return Decomposed(with_rank(update.direction, rank), update.magnitude)
    return update


def rank_of(update: Update) -> int:
    """The rank of a product of two matrices; 0 for any other update."""
    if isinstance(update, Decomposed):
        return rank_of(update.direction)
    return update.rank if isinstance(update, LowRank) else 0
