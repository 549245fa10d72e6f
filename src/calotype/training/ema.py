"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.training.sharding import spread_like


class EMA:
    """A float32 shadow of a module's trainable parameters: shadow <- d shadow + (1 - d) weights.

    The decay warms up as d = min(decay, (1 + updates) / (10 + updates)), so that early averages are not ruled by
    the random start. A decay of 0 is no average: the shadow is the weights themselves. Raises ``InputError`` if
    ``decay`` is not in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"The decay of a moving average must be in [0, 1), not {decay}.")
        self.decay = decay
        self.updates = 0
        self._live = [p for p in module.parameters() if p.requires_grad]
        # no second copy of the weights where there is no average
        self._shadow = [p.detach().float() if decay == 0 else p.detach().float().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._shadow, [p.detach().float() for p in self._live], 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module has the averaged weights; afterwards its own again, bit for bit."""
        own = [p.detach().clone() for p in self._live]
        self._assign(self._shadow)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._live, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, object]:
        """The average and how many updates it has had."""
        return {"updates": self.updates, "shadow": list(self._shadow)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from :meth:`state_dict`; raises ``InputError`` if it is of another module."""
        shadow = state["shadow"]
        assert isinstance(shadow, list)
        if [tuple(s.shape) for s in shadow] != [tuple(s.shape) for s in self._shadow]:
            raise InputError("The stored moving average is of a module with other parameters than this one.")
        for mine, stored in zip(self._shadow, shadow, strict=True):
            mine.copy_(spread_like(stored, mine))
        self.updates = int(state["updates"])  # type: ignore[call-overload]
