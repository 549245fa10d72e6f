"""What steers on the way, and how strongly."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from calotype.core.errors import InputError
from calotype.diffusion.guidance import Guidance
from calotype.diffusion.inputs.base import ANY, Inputs, argument, finite


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
class Perturbed(Inputs):
    """How strongly perturbed attention steers."""

    pag_scale: float = argument(
        3.0,
        "How far to go from what the model sees with perturbed attention (arXiv:2403.17377); 0 turns it off.",
    )
    pag_adaptive_scale: float = argument(
        0.0, "How much pag_scale falls with each timestep below 1000; above 0 it acts on early steps most."
    )

    def __post_init__(self) -> None:
        finite("pag_scale", self.pag_scale)
        finite("pag_adaptive_scale", self.pag_adaptive_scale)


@dataclass(frozen=True)
class FrameGuide(Inputs):
    """How strongly the given picture steers the frames of a video."""

    min_guidance_scale: float = argument(1.0, "How strongly the first frame follows the picture.")
    max_guidance_scale: float = argument(
        3.0,
        "How strongly the last frame does, with those between in even steps; 1 or less turns guidance off.",
    )

    def __post_init__(self) -> None:
        finite("min_guidance_scale", self.min_guidance_scale)
        finite("max_guidance_scale", self.max_guidance_scale)


SCALES = tuple(f.name for group in (Guide, ImageGuide, FrameGuide, Perturbed) for f in fields(group))
"""The arguments in whose place ``guidance`` stands."""


@dataclass(frozen=True)
class Guided(Inputs):
    """Guidance as one value."""

    guidance: Guidance | None = argument(
        None,
        "Guidance as one value of calotype.guidance, such as ClassifierFree(7.5) + PerturbedAttention(3.0) or "
        "Interval(ClassifierFree(7.5), 0.1, 0.8), in place of guidance_scale and what goes with it; or that scale.",
        beside=ANY,
    )

    def __post_init__(self) -> None:
        if self.guidance is not None and not isinstance(self.guidance, Guidance):
            raise InputError(
                f"guidance must be a number or a guidance such as calotype.guidance.ClassifierFree(7.5), not "
                f"{self.guidance!r}."
            )

    @staticmethod
    def settled(arguments: Mapping[str, Any], given: Container[str], prefix: str = "") -> dict[str, Any]:
        """A call's arguments with ``guidance`` apart: a number is the scale, and nothing is said twice.

        ``given`` are the names of the arguments that the caller gave; ``prefix`` stands before the names of the scales
        where a call samples several times. Raises ``InputError`` where a scale is given beside ``guidance``, or
        where the pipeline takes no scale.
        """
        guidance = arguments.get("guidance")
        if guidance is None:
            return {name: value for name, value in arguments.items() if name != "guidance"}
        own = [name for name in (f"{prefix}_{scale}".lstrip("_") for scale in SCALES) if name in arguments]
        for name in own:
            if name in given:
                raise InputError(
                    f"Both guidance and {name} are given; they say the same thing, so give one of them."
                )
        if not isinstance(guidance, Real) or isinstance(guidance, bool):
            return dict(arguments)
        scale = f"{prefix}_guidance_scale".lstrip("_")
        if scale not in own:
            raise InputError(
                f"This pipeline takes no guidance scale, so guidance={guidance} has no meaning here."
            )
        return {**arguments, scale: guidance, "guidance": None}


@dataclass(frozen=True)
class Attention(Inputs):
    """What is handed through to attention layers."""

    cross_attention_kwargs: dict[str, Any] | None = argument(
        None, "Keyword arguments for the attention layers, such as {'scale': 0.7} for LoRA weights."
    )

    @property
    def lora_scale(self) -> Any:
        """How strongly LoRA weights act in this call; None where it is not said."""
        return (self.cross_attention_kwargs or {}).get("scale")


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
    control_mode: int | list[int] | list[list[int]] | None = argument(
        None, "The kind of each picture, as its number in a ControlNet that reads several kinds."
    )

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
