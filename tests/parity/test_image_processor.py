"""The image processor against the reference: every kind of input, option and size."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers.image_processor as theirs
import numpy as np
import pytest
import torch
from PIL import Image

import calotype.image_processor as ours
from calotype.core.errors import InputError


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    return Image.fromarray(coarse, "RGBA").resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def array(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


INPUTS: dict[str, Callable[[], Any]] = {
    "pil": lambda: picture(50, 37),
    "pil list": lambda: [picture(48, 40), picture(48, 40, seed=2)],
    "grey": lambda: picture(33, 41, "L"),
    "array": lambda: array(37, 50, 3),
    "array batch": lambda: array(2, 37, 50, 3),
    "array list": lambda: [array(40, 48, 3), array(40, 48, 3, seed=3)],
    "tensor": lambda: torch.from_numpy(array(1, 3, 37, 50)),
    "tensor list": lambda: [torch.from_numpy(array(3, 40, 48)), torch.from_numpy(array(3, 40, 48))],
    "tensor batches": lambda: torch.from_numpy(array(3, 3, 40, 48)),
    "latents": lambda: torch.from_numpy(array(1, 4, 5, 7)),
    "signed tensor": lambda: torch.from_numpy(array(1, 3, 40, 48)) * 2 - 1,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "raw": {"do_normalize": False},
    "no resizing": {"do_resize": False},
    "mask": {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True},
    "rgb": {"do_convert_rgb": True, "resample": "bilinear", "vae_scale_factor": 16},
}
SIZES: dict[str, dict[str, Any]] = {"own size": {}, "given size": {"height": 64, "width": 45}}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", INPUTS)
def test_preprocess(kind: str, options: str, size: str) -> None:
    def run(library: Any) -> torch.Tensor:
        return library.VaeImageProcessor(**OPTIONS[options]).preprocess(INPUTS[kind](), **SIZES[size])

    if (kind, options, size) == (
        "array",
        "mask",
        "own size",
    ):  # three channels are no mask: read as a batch of narrow pictures
        for library in (theirs, ours):
            with pytest.raises((RuntimeError, ValueError)):
                run(library)
        return
    expected, found = run(theirs), run(ours)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


BOXES = [(3, 5, 30, 33), (0, 0, 50, 37), (10, 10, 12, 36), (40, 1, 50, 9)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("pad", [0, 4, 100])
@pytest.mark.parametrize("size", [(64, 64), (96, 32), (24, 80)])
def test_crop_region(box: tuple[int, ...], pad: int, size: tuple[int, int]) -> None:
    mask = Image.new("L", (50, 37))
    mask.paste(255, box)
    regions = [library.VaeImageProcessor.get_crop_region(mask, *size, pad=pad) for library in (theirs, ours)]
    assert regions[0] == regions[1]


@pytest.mark.parametrize("mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (40, 90), (90, 40), (37, 50)])
@pytest.mark.parametrize("crop", [None, (4, 2, 44, 31)])
def test_resize_modes(mode: str, size: tuple[int, int], crop: tuple[int, ...] | None) -> None:
    expected, found = (
        library.VaeImageProcessor(vae_scale_factor=1).preprocess(
            picture(50, 37), *size, resize_mode=mode, crops_coords=crop
        )
        for library in (theirs, ours)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("crop", [None, (4, 2, 44, 31)])
def test_overlay(crop: tuple[int, ...] | None) -> None:
    inner = picture(50, 37, seed=5) if crop is None else picture(64, 64, seed=5)
    results = [
        library.VaeImageProcessor().apply_overlay(picture(50, 37, "L", seed=8), picture(50, 37), inner, crop)
        for library in (theirs, ours)
    ]
    assert np.array_equal(*(np.asarray(result) for result in results))


def test_overlay_keeps_what_the_mask_does_not_mark() -> None:
    mask = Image.new("L", (50, 37))
    mask.paste(255, (10, 10, 20, 20))
    result = np.asarray(
        ours.VaeImageProcessor().apply_overlay(mask, picture(50, 37), picture(50, 37, seed=5))
    )
    kept = np.asarray(mask) == 0
    assert np.array_equal(result[kept], np.asarray(picture(50, 37))[kept])


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("flags", [None, [True, False], [False, False]])
def test_postprocess(kind: str, flags: list[bool] | None) -> None:
    tensor = torch.from_numpy(array(2, 3, 8, 8)) if flags else torch.from_numpy(array(2, 3, 8, 8)) * 3 - 1.5
    expected, found = (
        library.VaeImageProcessor().postprocess(tensor, kind, flags) for library in (theirs, ours)
    )
    if kind == "pil":
        expected, found = (np.stack([np.asarray(image) for image in result]) for result in (expected, found))
    assert np.array_equal(np.asarray(expected), np.asarray(found))


@pytest.mark.parametrize("method", ["__init__", "preprocess", "postprocess", "resize", "apply_overlay"])
def test_signature(method: str) -> None:
    shapes = [
        [
            (p.name, p.default)
            for p in inspect.signature(getattr(library.VaeImageProcessor, method)).parameters.values()
        ]
        for library in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("bad", [None, "photo.png", [], [picture(8, 8), array(8, 8, 3)], array(3)])
def test_what_is_no_picture_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="A picture must be"):
        ours.VaeImageProcessor().preprocess(bad)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(InputError, match="marks nothing"):
        ours.crop_region(Image.new("L", (8, 8)), 8, 8)
