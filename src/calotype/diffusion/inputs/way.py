"""The way from noise to picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import Seeds
from calotype.diffusion.inputs.base import Inputs, argument, finite, positive
from calotype.diffusion.limits import limits


@dataclass(frozen=True)
class Steps(Inputs):
    """The path from noise to picture."""

    num_inference_steps: int = argument(50, "Denoising steps; more is slower and, up to a point, better.")
    timesteps: Sequence[int] | None = argument(
        None, "The timesteps to visit, descending, in place of a number of steps."
    )
    sigmas: Sequence[float] | None = argument(
        None, "The noise levels to visit, descending, in place of a number of steps."
    )
    eta: float = argument(
        0.0, "η of DDIM, from 0 (deterministic) to 1 (as DDPM); other schedulers ignore it."
    )
    use_clipped_model_output: bool | None = argument(
        None, "Whether DDIM derives ε from the clipped prediction."
    )

    def __post_init__(self) -> None:
        if self.timesteps is not None and self.sigmas is not None:
            raise InputError("Both timesteps and sigmas are given; give one of them.")
        finite("eta", self.eta)
        positive("num_inference_steps", self.num_inference_steps, "steps")
        limits().check("steps", self.num_inference_steps, f"A call for {self.num_inference_steps:,} steps")


@dataclass(frozen=True)
class Span(Inputs):
    """The part of the noise levels to work on, for several models in turn, as fractions of the whole way."""

    denoising_start: float | None = argument(
        None, "The fraction of the way at which the given latents are; replaces strength, and adds no noise."
    )
    denoising_end: float | None = argument(None, "The fraction of the way after which another model goes on.")

    def __post_init__(self) -> None:
        for name in ("denoising_start", "denoising_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= finite(name, value) <= 1:
                raise InputError(f"{name} must be between 0 and 1, not {value!r}.")
        if self.starts and self.ends and self.denoising_start >= self.denoising_end:  # type: ignore[operator]
            raise InputError(
                f"denoising_start={self.denoising_start} is not before denoising_end={self.denoising_end}."
            )

    @property
    def starts(self) -> bool:
        """Whether the way begins in the middle."""
        return self.denoising_start is not None and 0 < self.denoising_start < 1

    @property
    def ends(self) -> bool:
        """Whether the way ends before the picture is finished."""
        return self.denoising_end is not None and 0 < self.denoising_end < 1


@dataclass(frozen=True)
class Noise(Inputs):
    """Where randomness comes from."""

    generator: torch.Generator | list[torch.Generator] | None = argument(
        None,
        "A seeded torch.Generator, one for each picture, or calotype.seeds(42), for a result that can be had again.",
    )
    latents: torch.Tensor | None = argument(
        None, "Standard normal noise to start from, in the latents' shape."
    )

    @classmethod
    def settled(cls, arguments: Mapping[str, Any], pictures: int) -> dict[str, Any]:
        """A call's arguments with a generator for each picture where seeds were given."""
        given = arguments.get("generator")
        return {
            **arguments,
            **({"generator": given.generators(pictures)} if isinstance(given, Seeds) else {}),
        }

    def check_count(self, pictures: int, rows: int) -> None:
        """Refuse a list of generators with neither one for each picture nor one for each of its ``rows``."""
        if isinstance(self.generator, list | tuple) and len(self.generator) not in (
            pictures,
            pictures * rows,
        ):
            raise InputError(
                f"There are {len(self.generator)} generators for {pictures} pictures; give one for all or one for each."
            )

    def by_row(self, rows: int) -> Noise:
        """With a generator for each row of latents: that of a picture serves all rows of it, one after another."""
        given = self.generator
        if not isinstance(given, list | tuple) or not given:
            return self
        return replace(self, generator=type(given)([*given] * (rows // len(given))))


@dataclass(frozen=True)
class Distilled(Inputs):
    """What a model that takes few steps was distilled from."""

    original_inference_steps: int | None = argument(
        None,
        "The steps of the teacher to choose the timesteps from; by default what the scheduler was made for.",
    )

    def __post_init__(self) -> None:
        if self.original_inference_steps is not None:
            positive("original_inference_steps", self.original_inference_steps, "steps")
