"""What is handed to the watermark's package, which a stand-in answers for here, against the reference."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl import watermark as reference

import calotype
from calotype.core.errors import InputError
from calotype.families import watermark
from tests.parity.deviations import deviation
from tests.parity.pipeline_runs import compare, quiet, seeded
from tests.tiny import stable_diffusion_xl_folder

PATTERN = np.array([40.0, 10.0, -20.0], dtype=np.float32)
"""What the stand-in adds to blue, green and red."""


class Encoder:
    """Keeps what it is given, and refuses small pictures as the package does."""

    calls: list[tuple[str, Any]]

    def __init__(self) -> None:
        self.calls = []

    def set_watermark(self, kind: str, content: Any) -> None:
        self.calls.append((kind, content))

    def encode(self, picture: np.ndarray, method: str) -> np.ndarray:
        height, width, _ = picture.shape
        if height * width < 256 * 256:
            raise RuntimeError("image too small, should be larger than 256x256")
        self.calls.append((method, picture.copy()))
        return picture * np.float32(0.8) + PATTERN


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("imwatermark")
    module.__spec__ = ModuleSpec("imwatermark", None)
    module.WatermarkEncoder = Encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imwatermark", module)
    monkeypatch.setattr(reference, "WatermarkEncoder", Encoder, raising=False)
    watermark._encoder.cache_clear()
    yield
    watermark._encoder.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", diffusers)


def test_the_same_is_handed_over(package: None) -> None:
    """Values past the range too; blue comes first, and the bits are those of the authors."""
    images = torch.rand(2, 3, 256, 264, generator=seeded()) * 2.6 - 1.3
    theirs = reference.StableDiffusionXLWatermarker()
    expected = theirs.apply_watermark(images)
    found = watermark.marked(images)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    (kind, bits), *pictures = watermark._encoder().calls
    (their_kind, their_bits), *their_pictures = theirs.encoder.calls
    assert (kind, bits) == (their_kind, their_bits)
    assert kind == "bits"
    assert len(bits) == 48
    assert set(bits) == {0, 1}
    assert len(pictures) == len(their_pictures) == 2
    for (method, picture), (their_method, their_picture) in zip(pictures, their_pictures, strict=True):
        assert method == their_method == "dwtDct"
        assert picture.dtype == their_picture.dtype == np.float32
        np.testing.assert_allclose(picture, their_picture, atol=1e-4)
    np.testing.assert_allclose(pictures[1][1][..., 0] / 127.5 - 1, images[1, 2].numpy(), atol=1e-5)


def test_type_and_order_stay(package: None) -> None:
    images = torch.zeros(1, 3, 256, 256, dtype=torch.float16)
    found = watermark.marked(images)
    assert found.dtype == torch.float16
    # grey, 127.5 of 255, times 0.8, and the pattern of each colour: red, green, blue
    expected = (127.5 * 0.8 + torch.tensor(PATTERN[::-1].copy())) / 127.5 - 1
    torch.testing.assert_close(found[0, :, 5, 7].float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(256, 255), (64, 64), (512, 248)])
def test_narrow_pictures_stay_as_they_are(package: None, size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size) * 2 - 1
    assert reference.StableDiffusionXLWatermarker().apply_watermark(images) is images
    assert watermark.marked(images) is images


def test_low_pictures_stay_as_they_are_too(package: None) -> None:
    assert deviation("pipelines/StableDiffusionXLPipeline/add_watermarker;low picture")
    images = torch.rand(1, 3, 128, 320) * 2 - 1
    with pytest.raises(RuntimeError, match="too small"):
        reference.StableDiffusionXLWatermarker().apply_watermark(images)
    assert watermark.marked(images) is images


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [256, 64])
def test_a_call_marks_its_pictures(package: None, folder: Path, side: int) -> None:
    theirs = quiet(diffusers.StableDiffusionXLPipeline.from_pretrained(folder))
    theirs.watermark = reference.StableDiffusionXLWatermarker()
    ours = quiet(calotype.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=True))
    compare(theirs, ours, lambda: {"height": side, "width": side, "num_inference_steps": 1})
    assert len(watermark._encoder().calls) == (2 if side == 256 else 1)


def test_marking_is_on_where_the_package_is(package: None, folder: Path) -> None:
    pictures = {}
    for wanted in (None, True, False):
        pipe = quiet(calotype.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=wanted))
        options = {"height": 256, "width": 256, "num_inference_steps": 1, "output_type": "pt"}
        pictures[wanted] = pipe("a ball", generator=seeded(), **options).images
    assert torch.equal(pictures[None], pictures[True])
    assert not torch.equal(pictures[None], pictures[False])


def test_it_is_refused_where_the_package_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "is_available", lambda: False)
    with pytest.raises(InputError, match="pip install invisible-watermark"):
        calotype.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=True)
    calotype.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=None)
