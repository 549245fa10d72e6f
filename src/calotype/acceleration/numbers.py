"""Numbers that captured calls read from the device: another value of one is no reason to capture anew."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from calotype.acceleration.state import everything
from calotype.adapters.layer import Adapted
from calotype.adapters.model import SCALED
from calotype.adapters.strength import checked, strength

WEIGHED = "conditioning_scale"
"""The argument that says how strongly a ControlNet acts."""
_KEPT = 256


class Amounts:
    """How strongly each of a model's adapters acts in each of its layers, in the memory of a device.

    It is for the layers and adapters that there are when it is made.
    """

    def __init__(self, model: nn.Module, place: torch.device) -> None:
        self.layers = [module for module in everything(model) if isinstance(module, Adapted)]
        slots = [(layer, name) for layer in self.layers for name in layer.names]
        self.places = {(layer, name): index for index, (layer, name) in enumerate(slots)}
        self.tensor = torch.zeros(len(slots), device=place)
        self.known: tuple[int, float] | None = None
        """When the amounts were read last: the call's number and the strength of all."""
        self.now: list[float] = [0.0] * len(slots)
        self.changes = 0

    def settle(self, epoch: int, overall: float) -> int:
        """Put the amounts where captured calls read them; how often they have changed.

        They are read from the layers once for each number ``epoch`` and strength of all adapters.
        """
        if self.places and self.known != (epoch, overall):
            wanted = [
                layer.strengths.get(name, 0.0) * overall for layer in self.layers for name in layer.names
            ]
            if wanted != self.now:
                host = torch.tensor(wanted)
                if self.tensor.is_cuda:  # the host need not wait for what the device does before
                    host = host.pin_memory()
                self.tensor.copy_(host, non_blocking=True)
                self.now = wanted
                self.changes += 1
            self.known = (epoch, overall)
        return self.changes

    def of(self, layer: Adapted, name: str) -> Tensor | None:
        """How strongly an adapter acts in a layer (1,), float32; None where it does not act."""
        if name in layer.fused or name not in layer.strengths:
            return None
        index = self.places[layer, name]
        return self.tensor[index : index + 1]


class Weighing:
    """ControlNets' strengths as tensors, of which the last ones are kept."""

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self.kept: OrderedDict[float, Tensor] = OrderedDict()

    def tensor(self, number: float) -> Tensor:
        """The number (1,), float32, on the device."""
        found = self.kept.pop(number, None)
        if found is None:
            found = torch.full((1,), number, device=self.place)
        self.kept[number] = found
        while len(self.kept) > _KEPT:
            self.kept.popitem(last=False)
        return found

    def __call__(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments with tensors for these numbers; in a list 0 stays, where it means that nothing is done."""
        given = kwargs.get(WEIGHED)
        if isinstance(given, list):
            each = [self.tensor(float(one)) if isinstance(one, Real) and one else one for one in given]
            return {**kwargs, WEIGHED: each}
        return {**kwargs, WEIGHED: self.tensor(float(given))} if isinstance(given, Real) else kwargs


def without_strength(kwargs: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """How strongly all adapters act in a call with these arguments, and the arguments as if they acted at 1."""
    overall = strength()
    given = kwargs.get(SCALED)
    if isinstance(given, Mapping) and given.get("scale") is not None:
        overall = checked("scale", given["scale"])
        kwargs = {**kwargs, SCALED: {**given, "scale": 1.0}}
    return overall, kwargs
