"""A layer with updates of its weight beside it, in the layer's own place in the model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from calotype.adapters.strength import strength
from calotype.adapters.updates import Layer, Update
from calotype.core.errors import InputError
from calotype.nn.replaceable import replaceable

ADAPTABLE = (nn.Linear, nn.Conv2d)
"""The layers that updates are for."""


class Adapted(nn.Module):
    """A ``Linear`` or ``Conv2d`` whose output gains what named updates make of its input.

    The parameters are the layer's, under the layer's names, so the model's keys stay as they are; the updates are no
    part of its state dictionary. All else that is asked of it is asked of the layer.
    """

    layer: Layer
    reads_weights_below: ClassVar[bool] = True
    """Its children's weights are read without calling them, so they come and go with it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        # not a child: the keys would change
        self.__dict__["layer"] = layer
        self._parameters = layer._parameters
        self.updates = nn.ModuleList()
        self.names: tuple[str, ...] = ()
        self.turns: dict[str, int] = {}
        """The place of each adapter among all of the model's, in the order in which they came."""
        self.strengths: dict[str, float] = {}
        """The model's active adapters, and how strongly each acts here if it has an update here."""
        self.enabled = True
        self.fused: tuple[str, ...] = ()
        """The updates that are in the weight."""
        self.original: torch.Tensor | None = None
        """The weight without them, in the host's memory."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "layer" not in self.__dict__ or name.startswith("__"):
                raise
            return getattr(self.__dict__["layer"], name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base: torch.Tensor = self.layer(x)
        if not self.enabled:
            return base
        out = base
        for name, update in zip(self.names, self.updates, strict=True):
            amount = self.amount(name)
            if amount is not None:
                assert isinstance(update, Update)
                out = out + update.gain(self.layer, x, base, amount)
        return out

    @replaceable
    def amount(self, name: str) -> float | torch.Tensor | None:
        """How strongly an adapter acts in this call, a tensor (1,) where the device knows; None if it does not."""
        if name in self.fused:
            return None
        return self.strengths.get(name, 0.0) * strength() or None

    def update_named(self, name: str) -> Update | None:
        """The update of an adapter, if it has one here."""
        for own, update in zip(self.names, self.updates, strict=True):
            if own == name:
                assert isinstance(update, Update)
                return update
        return None

    def choose(self, strengths: dict[str, float]) -> None:
        """Let these adapters act, as strongly as this says; of those in training they alone are trained."""
        self.strengths = strengths
        self._settle()

    def switch(self, on: bool) -> None:
        """Let the chosen adapters act, or none."""
        self.enabled = on
        self._settle()

    def _settle(self) -> None:
        for name, update in zip(self.names, self.updates, strict=True):
            for parameter in update.parameters():
                parameter.requires_grad_(self.enabled and name in self.strengths)

    def put(self, name: str, update: Update, turn: int) -> None:
        """Add the update of an adapter that has none here."""
        self.updates.append(update.train(self.training))
        self.names = (*self.names, name)
        self.turns[name] = turn

    def drop(self, name: str) -> None:
        """Take an adapter's update away; one that is fused is taken out of the weight first."""
        self.strengths = {n: s for n, s in self.strengths.items() if n != name}
        if name not in self.names:
            return
        if name in self.fused:
            self.unfuse()
        kept = [(n, u) for n, u in zip(self.names, self.updates, strict=True) if n != name]
        self.names = tuple(n for n, _ in kept)
        self.updates = nn.ModuleList(u for _, u in kept)
        del self.turns[name]

    @torch.no_grad()
    def fuse(self, names: tuple[str, ...], scale: float) -> None:
        """Make updates a part of the weight, which stays where it is; those that are in it already are left.

        Raises ``InputError``, with the weight as it was, where the result is not finite.
        """
        weight = self.layer.weight
        now = weight.float()
        new = [name for name in names if name in self.names and name not in self.fused]
        if not new:
            return
        for name in new:
            update = self.update_named(name)
            assert update is not None
            now = now + update.change(self.layer, self.strengths.get(name, 1.0) * scale)
        result = now.to(weight.dtype)
        if not result.isfinite().all():
            raise InputError(f"Fusing {', '.join(new)} would make weights that are not finite.")
        if self.original is None:
            self.original = weight.detach().to("cpu", copy=True)
        weight.copy_(result)
        self.fused = (*self.fused, *new)

    @torch.no_grad()
    def unfuse(self) -> None:
        """Give the weight back the values that it had, bit for bit."""
        if self.original is not None:
            self.layer.weight.copy_(self.original)
        self.original = None
        self.fused = ()
