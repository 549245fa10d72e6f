"""Batches that do not fit: stand-ins that run out of memory where the batch or the picture is too large."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import calotype
from calotype.diffusion.conditions import Conditions
from calotype.diffusion.fitting import Fitting, NotApart, Rows
from tests.tiny import stable_diffusion_folder, stable_diffusion_xl_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny", calotype)


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", calotype)


def small_memory(model: Any, method: str, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let ``method`` fail for more than ``most`` rows; gives the numbers of rows of the calls, failed ones as well."""
    seen: list[int] = []
    whole = getattr(model, method)

    def limited(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("full")
        return whole(x, *args, **kwargs)

    monkeypatch.setattr(model, method, limited)
    return seen


def pictures(pipe: Any, **arguments: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    usual = {"prompt": ["a ball", "a cube", "a cone"], "num_inference_steps": 2, "output_type": "pt"}
    return pipe(**{**usual, "generator": torch.Generator().manual_seed(0), **arguments}).images


def test_a_batch_that_does_not_fit_is_computed_in_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    expected = pictures(pipe)
    seen = small_memory(pipe.unet, "forward", 2, monkeypatch)
    with caplog.at_level(logging.WARNING, "calotype"):
        found = pictures(pipe)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # six rows, four, and from then on two
    assert seen[:5] == [6, 4, 2, 2, 2]
    assert set(seen[2:]) == {2}
    assert [m for m in caplog.messages if "in 2 parts" in m or "in 3 parts" in m] == caplog.messages
    assert "The denoiser's batch of 3 pictures does not fit into the memory of cpu" in caplog.text


def test_pictures_that_share_attention_are_not_computed_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    pipe.enable_style_aligned()
    seen = small_memory(pipe.unet, "forward", 2, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        pictures(pipe)
    assert seen == [6, 4, 2]
    pipe.disable_style_aligned()
    assert pictures(pipe).isfinite().all()


@pytest.mark.parametrize("kind", ["StableDiffusionXLPAGPipeline", "StableDiffusionControlNetPipeline"])
def test_what_stands_beside_the_latents_is_cut_with_them(
    folder: Path, xl_folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {}
    if "ControlNet" in kind:
        unet = calotype.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        control = calotype.ControlNetModel.from_unet(unet)
        pipe = calotype.StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=control)
        arguments = {"image": torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))}
        with torch.no_grad():
            for parameter in control.parameters():
                parameter.add_(0.05)
    else:
        pipe = calotype.StableDiffusionXLPAGPipeline.from_pretrained(xl_folder, pag_applied_layers=["mid"])
        arguments = {"pag_scale": 3.0}
    expected = pictures(pipe, **arguments)
    seen = small_memory(pipe.unet, "forward", 3, monkeypatch)
    found = pictures(pipe, **arguments)
    assert max(seen[-2:]) <= 3 < max(seen)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_one_picture_that_does_not_fit_is_the_memory_s_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    seen = small_memory(pipe.unet, "forward", 1, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        pictures(pipe)
    assert seen == [6, 4, 2]


@dataclass(frozen=True)
class Told(Conditions):
    value: Any


@pytest.mark.parametrize("value", [object(), torch.zeros(5), {"a": [torch.zeros(8, 3), lambda: 0]}])
def test_pictures_that_may_depend_on_each_other_are_not_parted(value: Any) -> None:
    latents = torch.randn(4, 1)

    def compute(latents: torch.Tensor, told: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        Fitting().predict(compute, latents, Told(value), 2)
    with pytest.raises(NotApart):
        Rows(latents, 2).taken(value, 0, 2)


def test_decoding_in_halves_and_in_tiles(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    expected = pictures(pipe)
    tiled_pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    seen = small_memory(pipe.vae, "decode", 1, monkeypatch)
    torch.testing.assert_close(pictures(pipe), expected, atol=1e-5, rtol=0)
    assert seen == [3, 2, 1, 1, 1]
    monkeypatch.undo()

    large = {"prompt": "a ball", "height": 128, "width": 96}
    tiled_pipe.enable_vae_tiling()
    tiles = pictures(tiled_pipe, **large)
    assert not torch.allclose(pictures(pipe, **large), tiles, atol=1e-3)  # these weights show the seams
    small_memory(pipe.vae, "decode", 0, monkeypatch)
    with caplog.at_level(logging.WARNING, "calotype"):
        assert torch.equal(pictures(pipe, **large), tiles)
    (said,) = caplog.messages[-1:]
    assert (
        said == "A picture of 128 x 96 does not fit into the memory of cpu at once; it is decoded in tiles."
    )
    assert not pipe.vae.use_tiling
    with pytest.raises(torch.OutOfMemoryError):  # no larger than a tile
        pictures(pipe, prompt="a ball")
