"""Edges and lines of a picture, white on black, without learned weights."""

from __future__ import annotations

import math
import os

import numpy as np
import PIL.Image
import PIL.ImageFilter

from calotype.core.errors import InputError
from calotype.utils.images import load_image

Source = str | os.PathLike[str] | PIL.Image.Image
"""What :func:`calotype.utils.load_image` takes."""

_TRAINED_SIDE = 512
"""The side, in pixels, of the pictures that the ControlNets learned lines from."""


def canny(image: Source, low_threshold: int = 100, high_threshold: int = 200) -> PIL.Image.Image:
    """Edges one pixel wide by Canny's method (https://doi.org/10.1109/TPAMI.1986.4767851), computed by OpenCV.

    Gradients above ``high_threshold`` begin an edge and those above ``low_threshold`` go on with it; 0 to about 1000.
    Raises ``InputError`` for other thresholds and ``ImportError`` where OpenCV is not installed.
    """
    if not 0 <= low_threshold <= high_threshold:
        raise InputError(
            f"The thresholds satisfy 0 <= low <= high; low_threshold is {low_threshold} and high_threshold "
            f"{high_threshold}."
        )
    picture = np.asarray(load_image(image))
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "canny is computed by OpenCV, which is not installed: pip install 'calotype[annotators]'."
        ) from error
    return _white_on_black(cv2.Canny(picture, low_threshold, high_threshold))


def lineart(image: Source, width: float = 1.0) -> PIL.Image.Image:
    """Fine lines with soft ends along the dark side of contours, as of a drawing.

    Differences of Gaussians (https://doi.org/10.1016/j.cag.2012.03.004, without its tones); ``width`` scales the lines,
    which are relative to the picture's size. Raises ``InputError`` for a width that is not positive.
    """
    response = _darker_than_around(np.asarray(load_image(image)), width)
    ink = np.tanh(100.0 * (response - 0.004).clip(0.0))
    return _white_on_black(np.rint(255.0 * ink).astype(np.uint8))


def scribble(image: Source, width: float = 1.0) -> PIL.Image.Image:
    """Few thick lines, black and white without greys, as of a quick sketch.

    The contours that remain at a coarse scale; ``width`` as in :func:`lineart`. Raises ``InputError`` for a width that
    is not positive.
    """
    picture = np.asarray(load_image(image))
    strokes = np.where(_darker_than_around(picture, 3.0 * width) > 0.015, np.uint8(255), np.uint8(0))
    radius = round(width * min(picture.shape[:2]) / _TRAINED_SIDE)
    drawn = PIL.Image.fromarray(strokes).filter(PIL.ImageFilter.MaxFilter(2 * radius + 1))
    return drawn.convert("RGB")


def _darker_than_around(picture: np.ndarray, width: float) -> np.ndarray:
    """How much darker each pixel is than its surroundings (height, width), in the channel where most so, from 0."""
    if not (math.isfinite(width) and width > 0):
        raise InputError(f"The width of lines is a positive number, not {width}.")
    sigma = max(0.5, width * min(picture.shape[:2]) / _TRAINED_SIDE)
    values = picture.astype(np.float32) / 255.0
    return (_blurred(values, 1.6 * sigma) - _blurred(values, sigma)).max(axis=-1).clip(0.0)


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """``values`` (height, width, channels) under a Gaussian; the border's values go on outside."""
    radius = math.ceil(3.0 * sigma)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        size = values.shape[axis]
        wide = np.pad(values, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="edge")
        values = np.zeros_like(values)
        for offset, tap in enumerate(taps):
            values += tap * wide.take(range(offset, offset + size), axis=axis)
    return values


def _white_on_black(grey: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(grey).convert("RGB")
