"""Editing by instruction (InstructPix2Pix, arXiv:2211.09800): noise, with the picture's latents beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.guidance import IMAGE, Guidance, Rescaled, text_and_image
from calotype.diffusion.inputs import Guide, ImageGuide, Picture, Size
from calotype.diffusion.tasks.from_image import FromImage, repeated_to
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.task import Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.tasks.task import Path

_PICTURE = FromImage()


@dataclass(frozen=True)
class Edit(Task):
    """Start from noise and read the picture; the branch that knows nothing reads zeros in its place.

    With ``at_its_size`` the picture's own size is worked at, otherwise by default what the model was trained for.
    """

    at_its_size: bool = True

    tensor_names: ClassVar[tuple[str, ...]] = ("image_latents",)

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture."""
        _PICTURE.check(family, arguments)

    def beside(self, family: Family) -> tuple[int, ...]:
        """The picture's latents."""
        return (family.latent_channels,)

    @property
    def branches(self) -> tuple[str, ...]:
        """The one that is told the picture alone."""
        return (IMAGE,)

    def guidance(self, family: Family, arguments: Mapping[str, Any]) -> Guidance:
        """By text and by picture."""
        guide, image_scale = Guide.of(arguments), ImageGuide.of(arguments).image_guidance_scale
        guidance = text_and_image(guide.guidance_scale, image_scale)
        return Rescaled(guidance, guide.guidance_rescale) if guide.guidance_rescale > 0 else guidance

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """As asked for, or by default the picture's or the model's."""
        if self.at_its_size:
            return _PICTURE.size(family, arguments, pictures)
        return Size.of(arguments).checked(family.default_size, family.multiple, pictures)

    def start(self, call: Call, path: Path) -> Start:
        """Encode the picture without a draw, as these models were trained; then draw the noise."""
        family: Any = call.family
        picture = Picture.of(call.arguments).image
        pixels = family.image_processor.preprocess(picture, height=call.height, width=call.width)
        pixels = pixels.to(call.device, family.dtype)
        if pixels.shape[1] == call.latent_shape[1]:
            latents = pixels * family.picture_unit
        else:
            latents = family.likeliest(pixels) * family.picture_unit
        latents = repeated_to(latents, call.pictures)
        nothing = torch.zeros_like(latents)
        stacked = torch.cat([nothing if name == "uncond" else latents for name in call.guidance.branches])
        return Start(noise_beside(call), {"image_latents": stacked}, channels=("image_latents",))


def noise_beside(call: Call) -> torch.Tensor:
    """The noise to start from; ``InputError`` for latents that are not as large as what the denoiser reads beside."""
    noise = initial_noise(call)
    if tuple(noise.shape) != tuple(call.latent_shape):
        raise InputError(
            f"latents has the shape {tuple(noise.shape)}; this picture needs {call.latent_shape}."
        )
    return noise * call.scheduler.init_noise_sigma
