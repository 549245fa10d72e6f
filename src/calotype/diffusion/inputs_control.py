"""The arguments of T2I-Adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calotype.core.errors import InputError
from calotype.diffusion.inputs import Inputs, argument


@dataclass(frozen=True)
class Adapted(Inputs):
    """How strongly, and how long, adapters steer."""

    image: Any = argument(None, "The picture that the adapter reads, or a list of one for each of several.")
    adapter_conditioning_scale: float | list[float] = argument(1.0, "How strongly the adapter steers.")
    adapter_conditioning_factor: float = argument(
        1.0, "The fraction of the steps in which it steers, from the start."
    )

    def __post_init__(self) -> None:
        if not 0 <= float(self.adapter_conditioning_factor) <= 1:
            raise InputError(
                f"adapter_conditioning_factor must be between 0 and 1, not {self.adapter_conditioning_factor!r}."
            )
