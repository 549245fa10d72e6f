"""Inpainting as Kandinsky 2 was trained for it: the denoiser reads the latents around the mask, which are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from calotype.core.errors import InputError
from calotype.diffusion.inputs import Masked, Picture
from calotype.diffusion.tasks.from_image import encoded, in_turn
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.inpaint import check_given, check_pasting, given_pictures, pasted
from calotype.diffusion.tasks.task import Path, Reimpose, Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State

KEPT_NEIGHBOURS = ((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1))
"""Beside which latents (down, right) one must lie to be made anew too: as the models were trained, not all eight."""


@dataclass(frozen=True)
class InpaintLatents(Task):
    """Start from noise and read the latents that the mask does not mark and that do not touch those.

    ``reimposed`` says whether these are also put back after each step.
    """

    reimposed: bool = True

    tensor_names: ClassVar[tuple[str, ...]] = ("masked_image", "mask_image")

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without picture or mask."""
        check_given(arguments)
        if Masked.of(arguments).composite:
            check_pasting(arguments, "composite")

    def beside(self, family: Family) -> tuple[int, ...]:
        """The latents that are kept, and the mask."""
        return (family.latent_channels + 1,)

    def start(self, call: Call, path: Path) -> Start:
        """Encode the picture, then draw the noise, which is also that of the latents that are kept."""
        family, shape = call.family, call.latent_shape
        size: dict[str, Any] = {
            "height": shape[2] * family.scale_factor,
            "width": shape[3] * family.scale_factor,
        }
        image, mask_image = Picture.of(call.arguments).image, Masked.of(call.arguments).mask_image
        pixels = as_pixels(image)
        if not isinstance(pixels, torch.Tensor):
            pixels = family.image_processor.preprocess(pixels, **size)
        given = len(pixels)
        latents = encoded(call, in_turn(pixels, call.pictures))
        marked = family.mask_processor.preprocess(mask_image, **size)
        marked = F.interpolate(marked, size=latents.shape[-2:]).to(latents)
        if len(marked) not in (1, given):
            raise InputError(f"There are {len(marked)} masks for {given} pictures; give one for each.")
        kept = in_turn(eroded(1 - marked), call.pictures)
        noise = initial_noise(call) * call.scheduler.init_noise_sigma
        if noise.shape != latents.shape:
            raise InputError(
                f"The latents are {tuple(noise.shape)} and those of the picture {tuple(latents.shape)}; give the "
                f"picture in the size that is asked for."
            )
        branches = len(call.guidance.branches)
        tensors = {
            "masked_image": (latents * kept).repeat(branches, 1, 1, 1),
            "mask_image": kept.repeat(branches, 1, 1, 1),
            "image": latents,
        }
        reimpose = around(latents, noise, path.timesteps, call.scheduler) if self.reimposed else None
        return Start(noise, tensors, channels=("masked_image", "mask_image"), reimpose=reimpose)

    def result(self, state: State) -> torch.Tensor:
        """The latents, with those of the picture where they are kept, whatever a callback has made of them."""
        return blended(state, state.tensors["image"]) if self.reimposed else state.latents

    def finish(self, call: Call, images: Any, output_type: str) -> Any:
        """Paste what was made into the pictures, where that was asked for; copies of one stand together."""
        if not Masked.of(call.arguments).composite:
            return images
        pictures, masks = given_pictures(call)
        return [
            pasted(call, made, *(each[i * len(each) // len(images)] for each in (pictures, masks)))
            for i, made in enumerate(images)
        ]


def as_pixels(image: Any) -> Any:
    """A picture as the image processor takes it: tensors are in [-1, 1] here, and arrays may go up to 255."""
    if isinstance(image, torch.Tensor):
        batch = image[None] if image.ndim == 3 else image
        if batch.ndim != 4 or batch.min() < -1 or batch.max() > 1:
            raise InputError(
                "A picture as a tensor must be (batch, 3, height, width) with values in [-1, 1]."
            )
        return batch
    if isinstance(image, list | tuple):
        return [as_pixels(one) for one in image]
    if isinstance(image, np.ndarray) and (np.issubdtype(image.dtype, np.integer) or image.max() > 1):
        return image.astype(np.float32) / 255
    return image


def eroded(kept: torch.Tensor) -> torch.Tensor:
    """A mask (batch, 1, height, width) of 0 and 1 with 0 also beside every 0."""
    padded = F.pad(kept, (1, 1, 1, 1), value=1.0)
    high, wide = kept.shape[-2:]
    smallest = kept
    for down, right in KEPT_NEIGHBOURS:
        shifted = padded[..., 1 + down : 1 + down + high, 1 + right : 1 + right + wide]
        smallest = torch.minimum(smallest, shifted)
    return smallest


def around(kept: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, scheduler: Any) -> Reimpose:
    """After each step, the picture's latents where the mask keeps them, noised to the level of the next timestep."""

    def reimpose(index: int, state: State) -> torch.Tensor:
        last = index == len(timesteps) - 1
        own = kept if last else scheduler.add_noise(kept, noise, timesteps[index + 1 : index + 2])
        return blended(state, own)

    return reimpose


def blended(state: State, own: torch.Tensor) -> torch.Tensor:
    """``own`` latents where the mask keeps them, and the state's elsewhere."""
    kept = state.tensors["mask_image"][: len(own)]
    return kept * own + (1 - kept) * state.latents
