"""Pictures as tensors, arrays and PIL images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import CalotypeError, InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class NonFiniteError(CalotypeError, ArithmeticError):
    """A computation that gave NaN or infinity, which would show as a black picture."""


def not_finite(what: str, dtype: torch.dtype, since: str = "") -> NonFiniteError:
    """The error for results that are NaN or infinite, with what to try."""
    return NonFiniteError(
        f"{what} hold NaN or infinite values{since} in {str(dtype).removeprefix('torch.')}: load the model with "
        f"torch_dtype=torch.float32 or torch.bfloat16, and check the weights and the guidance scale."
    )


def check_finite(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """``tensor``, if all its values are finite; otherwise ``NonFiniteError`` says what to try."""
    if not torch.isfinite(tensor).all():
        raise not_finite(what, tensor.dtype)
    return tensor


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """From the models' range [-1, 1] to [0, 1], clamped."""
    return (images / 2 + 0.5).clamp(0, 1)


def to_numpy(images: torch.Tensor) -> np.ndarray:
    """(batch, channels, height, width) on any device to a float32 array (batch, height, width, channels)."""
    return images.cpu().permute(0, 2, 3, 1).float().numpy()


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """Arrays (batch, height, width, channels), or one without a batch, in [0, 1] to pictures; one channel is grey.

    Values outside of [0, 1] are clipped; NaN, infinity or another shape raise ``InputError``.
    """
    import numpy as np
    from PIL import Image

    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"Pictures have the shape (height, width, channels) or (batch, height, width, channels) with 1, 3 or 4 "
            f"channels, not {tuple(images.shape)}."
        )
    if not np.isfinite(batch).all():
        raise InputError(_NOTHING_TO_SHOW)
    pixels = (batch.clip(0, 1) * 255).round().astype("uint8")
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


_NOTHING_TO_SHOW = "The pictures hold NaN or infinite values, so there is nothing to show."


def _shown(images: torch.Tensor) -> list[Image.Image]:
    """Tensors (batch, channels, height, width) in [0, 1] to pictures, rounded where they are: a quarter to copy."""
    from PIL import Image

    if images.shape[1] not in (1, 3, 4):
        return numpy_to_pil(to_numpy(images))  # which says what is wrong
    if not torch.isfinite(images).all():
        raise InputError(_NOTHING_TO_SHOW)
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in arrays]


def pt_to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Tensors (batch, channels, height, width) in [-1, 1] to pictures."""
    return numpy_to_pil(to_numpy(to_unit(images)))


def stacked(clips: list[Any], output_type: str) -> Any:
    """Videos of one length, each as ``output_type`` says, as one tensor or array; those of PIL images stay a list."""
    if output_type == "pt":
        return torch.stack(clips)
    if output_type == "pil":
        return clips
    import numpy as np

    return np.stack(clips)


def present(images: torch.Tensor, output_type: str) -> Any:
    """Pictures in [0, 1], shape (batch, channels, height, width), as ``"pt"``, ``"np"`` or ``"pil"``.

    Videos (videos, frames, channels, height, width) become as much of each.
    """
    if images.ndim == 5:
        return stacked([present(clip, output_type) for clip in images], output_type)
    if output_type == "pt":
        return images
    return to_numpy(images) if output_type == "np" else _shown(images)
