"""Inpainting: new content where a mask is white, the picture where it is black.

A denoiser with channels for it reads the mask and the masked picture; any other has the picture's latents, at the
right noise level, re-imposed around the mask after every step (arXiv:2112.10752, arXiv:2108.02938).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs import Masked, Output, Picture, Size, Span
from calotype.diffusion.tasks.from_image import encoded, later_part, repeated_to
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.task import Path, Start, Task, picture_size
from calotype.image_processor import as_list, as_rgb, is_pil

if TYPE_CHECKING:
    from PIL.Image import Image

    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State


@dataclass(frozen=True)
class Inpaint(Task):
    """Start from noise or, below strength 1, from the noised picture, and keep what the mask does not mark.

    With ``at_its_size`` the picture's own size is worked at, otherwise by default what the model was trained for.
    """

    at_its_size: bool = False

    tensor_names: ClassVar[tuple[str, ...]] = ("mask", "masked_image_latents")

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """As asked for, or by default the model's or the picture's."""
        asked = Size.of(arguments)
        if self.at_its_size:
            return picture_size(family, Picture.of(arguments).image, asked, pictures)
        return asked.checked(family.default_size, family.multiple, pictures)

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without picture or mask."""
        check_given(arguments)
        masked = Masked.of(arguments)
        if masked.padding_mask_crop is not None:
            check_pasting(arguments, "padding_mask_crop", one=True)
        elif masked.composite:
            check_pasting(arguments, "composite")

    def beside(self, family: Family) -> tuple[int, ...]:
        """Nothing, with any checkpoint; mask and masked picture, with one trained for inpainting."""
        return 0, family.latent_channels + 1

    def path(self, call: Call, path: Path) -> Path:
        """The last ``strength`` of the schedule."""
        return later_part(call, path, Picture.of(call.arguments).strength)

    def start(self, call: Call, path: Path) -> Start:
        """Encode the picture if it is needed, draw the noise, then encode the masked picture."""
        family, masked, strength = call.family, Masked.of(call.arguments), Picture.of(call.arguments).strength
        reads_mask = family.input_channels > family.latent_channels
        pixels, mask = self._prepared(call)
        kept = (
            encoded(call, pixels) if not reads_mask or (strength < 1 and call.noise.latents is None) else None
        )
        noise = initial_noise(call)
        if Span.of(call.arguments).denoising_start is not None:
            latents = encoded(call, pixels) if kept is None else kept
        elif kept is None or strength == 1 or call.noise.latents is not None:
            latents = noise * call.scheduler.init_noise_sigma
        else:
            latents = call.scheduler.add_noise(kept, noise, path.timesteps[:1].repeat(call.pictures))
        hidden = pixels * (mask < 0.5) if masked.masked_image_latents is None else masked.masked_image_latents
        small = torch.nn.functional.interpolate(mask, size=call.latent_shape[-2:])
        small = small.to(call.device, family.dtype)
        small = repeated_to(small, call.pictures)
        # encoded even where nothing reads it: the draw belongs to the order of random numbers
        tensors = {"mask": small, "masked_image_latents": encoded(call, hidden)}
        if reads_mask:
            return Start(latents, tensors, channels=("mask", "masked_image_latents"))
        assert kept is not None
        return Start(latents, tensors, reimpose=around(kept, noise, path.timesteps, call.scheduler))

    def picture_options(self, call: Call) -> dict[str, Any]:
        """Cut to the region around the mask, if that was asked for."""
        box = self._box(call)
        return {} if box is None else {"crops_coords": box, "resize_mode": "fill"}

    def _prepared(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """The picture in [-1, 1] and the mask (1 where something new goes), at the call's size."""
        options = {"height": call.height, "width": call.width, **self.picture_options(call)}
        pixels = call.family.image_processor.preprocess(Picture.of(call.arguments).image, **options)
        mask = call.family.mask_processor.preprocess(Masked.of(call.arguments).mask_image, **options)
        return pixels.float(), mask

    def _box(self, call: Call) -> tuple[int, int, int, int] | None:
        masked = Masked.of(call.arguments)
        if masked.padding_mask_crop is None:
            return None
        find = call.family.mask_processor.get_crop_region
        return find(masked.mask_image, call.width, call.height, pad=masked.padding_mask_crop)

    def finish(self, call: Call, images: Any, output_type: str) -> Any:
        """Paste what was made into the picture, where that was asked for or only a region of it was worked on."""
        box = self._box(call)
        if output_type != "pil" or (box is None and not Masked.of(call.arguments).composite):
            return images
        pictures, masks = given_pictures(call)
        return [
            pasted(call, made, pictures[i % len(pictures)], masks[i % len(masks)], box)
            for i, made in enumerate(images)
        ]


def check_given(arguments: Mapping[str, Any]) -> None:
    """Refuse a call without picture or mask."""
    given = {"image": Picture.of(arguments).image, "mask_image": Masked.of(arguments).mask_image}
    for name, value in given.items():
        if value is None:
            raise InputError(
                f"{name} is not given; inpainting needs the picture and the mask of what to replace."
            )


def check_pasting(arguments: Mapping[str, Any], name: str, *, one: bool = False) -> None:
    """Refuse pictures and masks that cannot be pasted into, as the argument ``name`` asks: any but PIL images."""
    given = [*as_list(Picture.of(arguments).image), *as_list(Masked.of(arguments).mask_image)]
    if not all(is_pil(each) for each in given) or (one and len(given) > 2):
        raise InputError(f"{name} needs image and mask_image as PIL images{', one of each' if one else ''}.")
    if one and given[0].size != given[1].size:
        raise InputError(
            f"{name} needs a mask as large as the picture, {given[0].size}, not {given[1].size}."
        )
    if Output.of(arguments).output_type != "pil":
        raise InputError(f"{name} needs output_type='pil', since it pastes into the picture.")


def given_pictures(call: Call) -> tuple[list[Any], list[Any]]:
    """The pictures and the masks of a call, one by one."""
    return as_list(Picture.of(call.arguments).image), as_list(Masked.of(call.arguments).mask_image)


def pasted(
    call: Call, made: Image, picture: Image, mask: Image, box: tuple[int, int, int, int] | None = None
) -> Image:
    """``made`` in place of what the mask marks in the picture, in the picture's size; RGB."""
    mask = mask if mask.size == picture.size else mask.resize(picture.size, resample=0)  # 0 is: nearest
    if box is None and made.size != picture.size:
        made = call.family.image_processor.resize(made, picture.height, picture.width)
    return call.family.image_processor.apply_overlay(mask, as_rgb(picture), made, box)


def around(
    kept: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, scheduler: Any
) -> Callable[[int, State], torch.Tensor]:
    """After each step, the picture's latents outside of the mask, noised to the level of the next timestep."""

    def reimpose(index: int, state: State) -> torch.Tensor:
        last = index == len(timesteps) - 1
        outside = kept if last else scheduler.add_noise(kept, noise, timesteps[index + 1 : index + 2])
        mask = state.tensors["mask"]
        return (1 - mask) * outside + mask * state.latents

    return reimpose
