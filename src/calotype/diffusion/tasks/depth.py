"""Image-to-image that keeps the depth of the scene: the denoiser reads a depth map beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs import Depth, Picture
from calotype.diffusion.tasks.from_image import FromImage, repeated_to
from calotype.diffusion.tasks.task import Path, Start, Task
from calotype.image_processor import as_list

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family

_PICTURE = FromImage()


class FromImageAndDepth(Task):
    """Start from a picture and read its depth, given or estimated."""

    tensor_names = ("depth_mask",)

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture, or one whose depth cannot be had."""
        _PICTURE.check(family, arguments)
        if Depth.of(arguments).depth_map is None:
            first = as_list(Picture.of(arguments).image)[0]
            if isinstance(first, torch.Tensor) and first.shape[-3] == family.latent_channels:
                raise InputError("The depth of latents cannot be estimated; pass depth_map.")
            if getattr(family, "depth_estimator", None) is None:
                raise InputError("The pipeline has no depth_estimator; pass depth_map.")

    def beside(self, family: Family) -> tuple[int, ...]:
        """The depth."""
        return (1,)

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """The picture's own size, rounded down to what the autoencoder divides."""
        return _PICTURE.size(family, arguments, pictures)

    def path(self, call: Call, path: Path) -> Path:
        """The last ``strength`` of the schedule."""
        return _PICTURE.path(call, path)

    def start(self, call: Call, path: Path) -> Start:
        """The depth, then what image-to-image starts from."""
        depth = Depth.of(call.arguments).depth_map
        if depth is None:
            depth = estimated(call.family, pictures_in(Picture.of(call.arguments).image), call.device)
        depth = normalized(depth.to(call.device, call.family.dtype), call.latent_shape[-2:])
        branches = len(call.guidance.branches)
        stacked = repeated_to(depth, call.pictures).repeat(branches, 1, 1, 1)
        start = _PICTURE.start(call, path)
        return replace(start, tensors={"depth_mask": stacked}, channels=("depth_mask",))


def pictures_in(image: Any) -> list[Any]:
    """One picture, several, or a batch in one array or tensor, as a list of single ones."""
    items = as_list(image)
    return list(items[0]) if len(items) == 1 and getattr(items[0], "ndim", 3) == 4 else items


def estimated(family: Any, images: list[Any], device: torch.device) -> torch.Tensor:
    """Inverse depth (batch, height, width), in the estimator's own unit and size."""
    pixels = family.feature_extractor(images=images, return_tensors="pt").pixel_values
    half = family.dtype != torch.float32
    # the batch norms of the published estimator overflow in float16 outside of autocast
    with torch.autocast(device.type, dtype=family.dtype if half else None, enabled=half):
        return family.depth_estimator(pixels.to(device, family.dtype)).predicted_depth


def normalized(depth: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Depth (batch, height, width) as (batch, 1, *size) from -1 to 1; ``InputError`` where it does not vary."""
    resized = torch.nn.functional.interpolate(depth[:, None], size=size, mode="bicubic", align_corners=False)
    low, high = resized.amin((1, 2, 3), keepdim=True), resized.amax((1, 2, 3), keepdim=True)
    if not (high > low).all():
        raise InputError(
            "The depth map has the same value everywhere, or NaN, so that it says nothing of the scene; pass another."
        )
    return (2 * (resized - low) / (high - low) - 1).to(depth.dtype)
