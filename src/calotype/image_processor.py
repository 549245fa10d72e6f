"""Pictures in any form that users have them, made into what autoencoders read, and back.

The functions are pure; :class:`VaeImageProcessor` holds the options and is the face that users know.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from calotype.core.config import ConfigMixin
from calotype.core.errors import InputError
from calotype.diffusion import images as presentation
from calotype.nn.image_prompt import mask_of_queries

if TYPE_CHECKING:
    from PIL.Image import Image

    PipelineImageInput = (
        Image | np.ndarray | torch.Tensor | list[Image] | list[np.ndarray] | list[torch.Tensor]
    )

RESIZE_MODES = ("default", "fill", "crop")


def is_pil(image: Any) -> bool:
    """Whether this is a PIL image, without importing PIL for those who have none."""
    from PIL import Image

    return isinstance(image, Image.Image)


def pil_to_numpy(images: Image | Sequence[Image]) -> np.ndarray:
    """float32 (batch, height, width[, channels]) in [0, 1], the channels as the pictures have them."""
    batch = [images] if is_pil(images) else images
    return np.stack([np.asarray(image).astype(np.float32) / 255.0 for image in batch])  # type: ignore[union-attr]


def numpy_to_pt(images: np.ndarray) -> torch.Tensor:
    """(batch, height, width[, channels]) to (batch, channels, height, width)."""
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


def resized(
    image: Any,
    height: int,
    width: int,
    mode: str = "default",
    resample: str = "lanczos",
    gap: int | None = None,
) -> Any:
    """An image in another size: PIL with ``resample``, arrays and tensors by nearest pixels.

    ``mode`` is for PIL images: ``default`` stretches, ``fill`` keeps the proportions and fills the border from the
    picture's edge, ``crop`` keeps them and cuts what is over.
    """
    if mode not in RESIZE_MODES:
        raise InputError(f"resize_mode must be one of {', '.join(RESIZE_MODES)}, not {mode!r}.")
    if is_pil(image):
        from calotype.utils.images import PIL_INTERPOLATION

        if mode == "default":
            return image.resize((width, height), resample=PIL_INTERPOLATION[resample], reducing_gap=gap)
        return _fitted(image, height, width, cover=mode == "crop", resample=PIL_INTERPOLATION[resample])
    if mode != "default":
        raise InputError(f"resize_mode={mode!r} is for PIL images; convert the picture, or leave it out.")
    if isinstance(image, np.ndarray):
        return presentation.to_numpy(resized(numpy_to_pt(image), height, width))
    return torch.nn.functional.interpolate(image, size=(height, width))


def _fitted(image: Image, height: int, width: int, cover: bool, resample: Any) -> Image:
    """The picture in its own proportions, centred: covering the size, or inside it with its edges drawn out."""
    from PIL import Image

    wider = width * image.height < image.width * height  # the picture is wider than the place for it
    if wider != cover:
        inner = (width, image.height * width // image.width)
    else:
        inner = (image.width * height // image.height, height)
    small = image.resize(inner, resample=resample)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(small, box=(left, top))
    if cover:
        return canvas
    if wider and top > 0:
        for edge, at in ((0, 0), (inner[1], top + inner[1])):
            canvas.paste(small.resize((width, top), box=(0, edge, width, edge)), box=(0, at))
    elif not wider and left > 0:
        for edge, at in ((0, 0), (inner[0], left + inner[0])):
            canvas.paste(small.resize((left, height), box=(edge, 0, edge, height)), box=(at, 0))
    return canvas


def crop_region(mask: Image, width: int, height: int, pad: int = 0) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around what a mask marks, padded and grown to the proportions of a size.

    Raises ``InputError`` for a mask that marks nothing.
    """
    box = mask.convert("L").getbbox()
    if box is None:
        raise InputError("mask_image marks nothing: it is black all over, so there is no region to crop to.")
    left, top = max(box[0] - pad, 0), max(box[1] - pad, 0)
    right, bottom = min(box[2] + pad, mask.width), min(box[3] + pad, mask.height)
    proportion = width / height
    if (right - left) / (bottom - top) > proportion:
        top, bottom = _grown(top, bottom, int((right - left) / proportion), mask.height)
    else:
        left, right = _grown(left, right, int((bottom - top) * proportion), mask.width)
    return left, top, right, bottom


def _grown(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """An interval drawn out to ``length`` about its middle and moved into [0, limit], cut if it does not fit."""
    more = length - (end - start)
    start, end = start - more // 2, end + more - more // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def as_rgb(image: Image) -> Image:
    """A PIL image of any mode with three channels of eight bits; those of sixteen bits are scaled, not cut off."""
    if image.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def as_list(image: Any) -> list[Any]:
    """One picture or several of one kind as a list; ``InputError`` for anything that is no picture."""
    items = list(image) if isinstance(image, list | tuple) else [image]
    same = any(
        items and all(isinstance(item, kind) for item in items) for kind in (np.ndarray, torch.Tensor)
    ) and all(item.ndim in (2, 3, 4) for item in items)
    if not same and not (items and all(is_pil(item) for item in items)):
        raise InputError(
            f"A picture must be a PIL image, a numpy array or a torch tensor of 2 to 4 dimensions, or a list of one of "
            f"these, not {image!r:.80}."
        )
    return items


def _with_channel(image: Any) -> Any:
    """Arrays and tensors of one-channel pictures with the channel that three dimensions leave out."""
    if not isinstance(image, torch.Tensor | np.ndarray) or image.ndim != 3:
        return image
    if isinstance(image, torch.Tensor):
        return image[:, None]
    return image[None] if image.shape[-1] == 1 else image[..., None]


def _finite(pixels: torch.Tensor) -> torch.Tensor:
    """``pixels``; refused when some are NaN or infinite, which would spread over all of the result."""
    if pixels.is_floating_point() and not torch.isfinite(pixels).all():
        raise InputError("The picture holds NaN or infinite values; pass one with values in [0, 1].")
    return pixels


class VaeImageProcessor(ConfigMixin):
    """Pictures for an autoencoder whose latents are ``vae_scale_factor`` times smaller, and pictures out of it.

    ``resample`` names a PIL filter. Raises ``InputError`` when both conversions are asked for.
    """

    config_name = "config.json"

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: int | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        if do_convert_rgb and do_convert_grayscale:
            raise InputError("do_convert_rgb and do_convert_grayscale exclude each other; set one of them.")

    numpy_to_pil = staticmethod(presentation.numpy_to_pil)
    pt_to_numpy = staticmethod(presentation.to_numpy)
    pil_to_numpy = staticmethod(pil_to_numpy)
    numpy_to_pt = staticmethod(numpy_to_pt)
    get_crop_region = staticmethod(crop_region)

    @staticmethod
    def normalize(images: Any) -> Any:
        """From [0, 1] to [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Any) -> Any:
        """From [-1, 1] to [0, 1], clamped."""
        return presentation.to_unit(images)

    @staticmethod
    def convert_to_rgb(image: Image) -> Image:
        """The picture with three channels."""
        return as_rgb(image)

    @staticmethod
    def convert_to_grayscale(image: Image) -> Image:
        """The picture with one channel."""
        return image.convert("L")

    @staticmethod
    def blur(image: Image, blur_factor: int = 4) -> Image:
        """Gaussian blur of radius ``blur_factor`` pixels."""
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """The image in another size; see :func:`resized`."""
        return resized(image, height, width, resize_mode, self.config.resample, self.config.reducing_gap)

    def binarize(self, image: torch.Tensor) -> torch.Tensor:
        """0 below one half and 1 from there on."""
        return (image >= 0.5).to(image.dtype)

    def get_default_height_width(
        self, image: Any, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """The size to work at: as given or as the image has it, rounded down to what the autoencoder divides."""
        if is_pil(image):
            own = [image.height, image.width]
        else:
            own = list(image.shape[2:4] if isinstance(image, torch.Tensor) else image.shape[1:3])
        step = self.config.vae_scale_factor
        high = own[0] if height is None else height
        wide = own[1] if width is None else width
        return high - high % step, wide - wide % step

    def preprocess(
        self,
        image: PipelineImageInput,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> torch.Tensor:
        """Pictures as a tensor (batch, channels, height, width), in [-1, 1] if ``do_normalize``.

        Takes PIL images, arrays (batch, height, width, channels) and tensors (batch, channels, height, width) in
        [0, 1], and lists of them; latents come back as they are. Raises ``InputError`` for anything else.
        """
        config = self.config
        items = as_list(_with_channel(image) if config.do_convert_grayscale else image)
        if is_pil(items[0]):
            if crops_coords is not None:
                items = [item.crop(crops_coords) for item in items]
            if config.do_resize:
                size = self.get_default_height_width(items[0], height, width)
                items = [self.resize(item, *size, resize_mode=resize_mode) for item in items]
            if config.do_convert_rgb or config.do_convert_grayscale:
                convert = self.convert_to_rgb if config.do_convert_rgb else self.convert_to_grayscale
                items = [convert(item) for item in items]
            pixels = numpy_to_pt(pil_to_numpy(items))
        else:
            if isinstance(items[0], np.ndarray):
                joined = np.concatenate(items) if items[0].ndim == 4 else np.stack(items)
                pixels = numpy_to_pt(joined)
            else:
                pixels = torch.cat(items) if items[0].ndim == 4 else torch.stack(items)
                if config.do_convert_grayscale and pixels.ndim == 3:
                    pixels = pixels[:, None]
                if pixels.shape[1] == config.vae_latent_channels:
                    return _finite(pixels)
            pixels = _finite(pixels)
            if config.do_resize:
                pixels = self.resize(pixels, *self.get_default_height_width(pixels, height, width))
        if config.do_normalize:
            if pixels.min() < 0:
                warnings.warn(
                    "The picture has values below 0 and is taken to be in [-1, 1] already; pass it in [0, 1].",
                    FutureWarning,
                    stacklevel=2,
                )
            else:
                pixels = self.normalize(pixels)
        return self.binarize(pixels) if config.do_binarize else pixels

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: list[bool] | None = None
    ) -> Any:
        """Decoded pictures (batch, channels, height, width) as ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``.

        ``do_denormalize`` says for each picture whether it is in [-1, 1] still; by default ``do_normalize`` does.
        """
        if not isinstance(image, torch.Tensor):
            raise InputError(f"postprocess takes a tensor, not {type(image).__name__}.")
        if output_type == "latent":
            return image
        flags = [self.config.do_normalize] * len(image) if do_denormalize is None else do_denormalize
        if all(flags):
            image = presentation.to_unit(image)
        elif any(flags):
            pairs = zip(image, flags, strict=True)
            image = torch.stack([presentation.to_unit(one) if flag else one for one, flag in pairs])
        return presentation.present(image, output_type)

    def apply_overlay(
        self,
        mask: Image,
        init_image: Image,
        image: Image,
        crop_coords: tuple[int, int, int, int] | None = None,
    ) -> Image:
        """``image`` where the mask is white and ``init_image`` where it is black, blended where it is grey.

        With ``crop_coords`` the image is first put back into that box of the original.
        """
        from PIL import Image, ImageOps

        size = (init_image.width, init_image.height)
        kept = Image.new("RGBa", size)
        kept.paste(init_image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            base = Image.new("RGBA", size)
            base.paste(self.resize(image, bottom - top, right - left, resize_mode="crop"), (left, top))
            image = base.convert("RGB")
        result = image.convert("RGBA")
        result.alpha_composite(kept.convert("RGBA"))
        return result.convert("RGB")


class IPAdapterMaskProcessor(ConfigMixin):
    """Masks that say where the pictures of an IP-Adapter act; the options are those of :class:`VaeImageProcessor`."""

    config_name = "config.json"

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        resample: str = "lanczos",
        do_normalize: bool = False,
        do_binarize: bool = True,
        do_convert_grayscale: bool = True,
    ) -> None:
        options = {name: value for name, value in self.config.items() if not name.startswith("_")}
        self._processor = VaeImageProcessor(**options)

    def preprocess(
        self,
        image: PipelineImageInput,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> torch.Tensor:
        """Masks (pictures, 1, height, width); for several pictures of one adapter exchange the first two."""
        return self._processor.preprocess(image, height, width, resize_mode, crops_coords)

    @staticmethod
    def downsample(
        mask: torch.Tensor, batch_size: int, num_queries: int, value_embed_dim: int
    ) -> torch.Tensor:
        """A mask (1 or batch, height, width) for attention's queries: (batch, num_queries, value_embed_dim)."""
        small = mask_of_queries(mask, num_queries).to(mask.dtype)
        rows = batch_size if len(small) < batch_size else len(small)
        return small.expand(rows, -1, value_embed_dim)
