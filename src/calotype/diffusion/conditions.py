"""What a denoiser is told beside the noisy latents and the timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def only(self, branches: Sequence[str], of: Sequence[str], pictures: int) -> Self:
        """The conditions of ``branches`` alone, out of those that are stacked here."""
        return replace(
            self,
            **{f.name: only(getattr(self, f.name), branches, of=of, pictures=pictures) for f in fields(self)},
        )


@dataclass(frozen=True)
class Nothing(Conditions):
    """The conditions of an unconditional model."""


def repeated(tensor: torch.Tensor, times: int) -> torch.Tensor:
    """Each item of the batch ``times`` times in a row: (b, …) becomes (b·times, …)."""
    return tensor.repeat_interleave(times, dim=0)


def only(value: Any, branches: Sequence[str], *, of: Sequence[str], pictures: int) -> Any:
    """``value`` with the rows of ``branches`` in every tensor that has a row for each picture of all branches ``of``.

    Mappings, lists and tuples, named ones too, are gone through; whatever else there is stays as it is.
    """
    if tuple(branches) == tuple(of):
        return value
    if isinstance(value, torch.Tensor):
        if value.ndim == 0 or len(value) != pictures * len(of):
            return value
        rows = value.split(pictures)
        chosen = [rows[of.index(name)] for name in branches]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen)
    if isinstance(value, Mapping):
        return {name: only(part, branches, of=of, pictures=pictures) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [only(part, branches, of=of, pictures=pictures) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
