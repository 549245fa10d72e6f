"""What a denoiser is told beside the noisy latents and the timestep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch


@dataclass(frozen=True)
class Conditions:
    """Base of a family's conditions: a frozen value whose tensors hold the guidance branches stacked along the batch.

    A family derives its own with the fields that its denoiser takes; the loop and the callbacks see only tensors by
    name.
    """

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The fields that are tensors, by name."""
        return {
            f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)
        }

    def replaced(self, tensors: Mapping[str, Any]) -> Self:
        """The same conditions with some fields replaced; names that are not fields are ignored."""
        names = {f.name for f in fields(self)}
        return replace(self, **{name: value for name, value in tensors.items() if name in names})


@dataclass(frozen=True)
class Nothing(Conditions):
    """The conditions of an unconditional model."""


def repeated(tensor: torch.Tensor, times: int) -> torch.Tensor:
    """Each item of the batch ``times`` times in a row: (b, …) becomes (b·times, …)."""
    return tensor.repeat_interleave(times, dim=0)
