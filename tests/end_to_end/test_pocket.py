"""The checkpoint that comes with the package: its format, and that it makes the same picture everywhere."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.pipelines.bundled import BUNDLED

FOLDER = BUNDLED["pocket"]
PROMPT = "a big red ball on grass at sunset"


def make(pipe: Any, **options: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPT,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **options,
    ).images


@pytest.fixture(scope="module")
def pocket() -> Any:
    return calotype.load("pocket", device="cpu")


def test_it_weighs_little() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 20_000_000


def test_it_is_a_stable_diffusion_checkpoint(pocket: Any) -> None:
    assert isinstance(pocket, calotype.StableDiffusionPipeline)
    assert type(calotype.DiffusionPipeline.from_pretrained(FOLDER)) is calotype.StableDiffusionPipeline
    assert pocket.unet.config.sample_size * pocket.vae_scale_factor == 128


def test_the_reference_makes_the_same_picture(pocket: Any) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)
    torch.testing.assert_close(make(pocket), make(theirs), atol=1e-4, rtol=0)


def test_prompts_and_guidance_matter(pocket: Any) -> None:
    plain = make(pocket)
    assert plain.shape == (1, 3, 128, 128)
    assert plain.std() > 0.05
    for options in ({"guidance_scale": 1.0}, {"negative_prompt": "snow at night"}):
        assert (make(pocket, **options) - plain).abs().mean() > 0.01


def test_any_scheduler_serves(pocket: Any) -> None:
    for name in ("DDIM", "Euler", "UniPC"):
        pipe = calotype.AutoPipelineForText2Image.from_pipe(pocket)
        pipe.scheduler = calotype.Scheduler.named(name, pocket.scheduler.config)
        assert (make(pipe) - make(pocket)).abs().mean() < 0.25
