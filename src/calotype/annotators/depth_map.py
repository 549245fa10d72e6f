"""The depth of a picture's scene by any depth model of transformers, near things bright."""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
import PIL.Image
import torch

from calotype.core.errors import InputError
from calotype.utils.images import load_image

_METRIC = ("depth_pro", "glpn", "zoedepth")
"""Kinds of models that predict distances; the others predict disparities, or say in their configuration."""


@torch.no_grad()
def depth(
    image: str | os.PathLike[str] | PIL.Image.Image,
    estimator: str | os.PathLike[str] | torch.nn.Module = "Intel/dpt-hybrid-midas",
    processor: Any = None,
    device: str | torch.device | None = None,
) -> PIL.Image.Image:
    """The disparity (one over the distance), from black for the farthest to white for the nearest.

    ``estimator`` is a depth model of transformers (DPT, Depth Anything, ZoeDepth, …) with its image ``processor``, or
    the name or folder of both, which are then loaded for this call, onto ``device`` (by default the accelerator if
    there is one). Raises ``InputError`` for a model without a processor and where no depth is seen.
    """
    picture = load_image(image)
    if not isinstance(estimator, torch.nn.Module):
        model, processor = _loaded(estimator, processor, device)
    elif processor is None:
        raise InputError(f"Pass the image processor that belongs to the {type(estimator).__name__} too.")
    else:
        model = estimator
    place = next(model.parameters())
    inputs = processor(images=picture, return_tensors="pt").to(place.device, place.dtype)
    found = _in_size(processor, model(**inputs), picture.height, picture.width).float()
    if _predicts_distance(model):
        found = 1.0 / found.clamp_min(1e-3)
    low, high = found.min(), found.max()
    if not high > low:
        raise InputError(
            "The model sees the same depth everywhere, or NaN: the picture shows no scene to it."
        )
    grey = (255.0 * (found - low) / (high - low)).round().byte().cpu().numpy()
    return PIL.Image.fromarray(np.asarray(grey)).convert("RGB")


def _loaded(
    name: str | os.PathLike[str], processor: Any, device: str | torch.device | None
) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    model = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True)
    return model.to(device).eval(), processor or AutoImageProcessor.from_pretrained(name)


def _in_size(processor: Any, outputs: Any, height: int, width: int) -> torch.Tensor:
    """The prediction (height, width) without what the processor padded."""
    restore = processor.post_process_depth_estimation
    sizes = {"target_sizes": [(height, width)], "source_sizes": [(height, width)]}
    known = inspect.signature(restore).parameters
    return restore(outputs, **{k: v for k, v in sizes.items() if k in known})[0]["predicted_depth"]


def _predicts_distance(model: Any) -> bool:
    config = model.config
    return config.model_type in _METRIC or getattr(config, "depth_estimation_type", None) == "metric"
