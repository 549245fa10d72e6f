"""What steers on the way, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, finite


@dataclass(frozen=True)
class Guide(Inputs):
    """How strongly the prompt steers."""

    guidance_scale: float = argument(
        7.5,
        "How strongly to follow the prompt; 1 or less turns classifier-free guidance off and takes half the time.",
    )
    guidance_rescale: float = argument(
        0.0,
        "φ of arXiv:2305.08891 section 3.4, in [0, 1]: how far to restore the contrast that strong guidance changes.",
    )

    def __post_init__(self) -> None:
        finite("guidance_scale", self.guidance_scale)
        finite("guidance_rescale", self.guidance_rescale)


@dataclass(frozen=True)
class ImageGuide(Inputs):
    """How strongly the given picture steers."""

    image_guidance_scale: float = argument(
        1.5, "How strongly to stay near the picture; below 1 turns guidance off altogether."
    )

    def __post_init__(self) -> None:
        finite("image_guidance_scale", self.image_guidance_scale)


@dataclass(frozen=True)
class Attention(Inputs):
    """What is handed through to attention layers and image adapters."""

    cross_attention_kwargs: dict[str, Any] | None = argument(
        None, "Keyword arguments for the attention layers, such as {'scale': 0.7} for LoRA weights."
    )
    ip_adapter_image: Any = argument(None, "Pictures for an IP-Adapter.")
    ip_adapter_image_embeds: list[torch.Tensor] | None = argument(
        None, "Encoded pictures for each IP-Adapter, negatives first when guidance is on."
    )


@dataclass(frozen=True)
class Controlled(Inputs):
    """How strongly, and in which part of the way, ControlNets steer; lists have a value for each of several."""

    control_image: Any = argument(
        None, "The picture that the ControlNet reads, or a list of one for each of several."
    )
    controlnet_conditioning_scale: float | list[float] = argument(1.0, "How strongly the ControlNet steers.")
    guess_mode: bool = argument(False, "Let the ControlNet guess the content, also without a prompt.")
    control_guidance_start: float | list[float] = argument(
        0.0, "The fraction of the steps at which it begins."
    )
    control_guidance_end: float | list[float] = argument(1.0, "The fraction of the steps at which it ends.")

    def ranges(self, count: int) -> list[tuple[float, float]]:
        """Beginning and end for each of ``count`` ControlNets; ``InputError`` for what is no range in [0, 1]."""
        columns = []
        for name in ("control_guidance_start", "control_guidance_end"):
            value = getattr(self, name)
            values = list(value) if isinstance(value, list | tuple) else [value] * count
            if len(values) != count:
                raise InputError(f"There are {len(values)} values of {name} for {count} ControlNets.")
            columns.append([finite(name, one) for one in values])
        for start, end in zip(*columns, strict=True):
            if not 0 <= start < end <= 1:
                raise InputError(
                    f"A ControlNet cannot steer from {start} to {end} of the steps; control_guidance_start must be "
                    f"below control_guidance_end, both between 0 and 1."
                )
        return list(zip(*columns, strict=True))

    def scales(self, count: int, steps: int) -> list[list[float]]:
        """The scale of each ControlNet in each step: its own within its range, else 0."""
        given = self.controlnet_conditioning_scale
        each = list(given) if isinstance(given, list | tuple) else [given] * count
        ranges = self.ranges(count)
        return [
            [
                scale if i / steps >= start and (i + 1) / steps <= end else 0.0
                for scale, (start, end) in zip(each, ranges, strict=True)
            ]
            for i in range(steps)
        ]


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
