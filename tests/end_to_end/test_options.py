"""What is used by name, with the bundled model: how far its pictures are from the exact ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import calotype
from calotype.acceleration import Options, StepCache
from calotype.acceleration.accelerated import runner_of

PROMPT = "a big shiny red ball to the left of a small blue cube on grass at sunset"


@pytest.fixture(scope="module")
def pocket() -> Any:
    pipe = calotype.load("pocket", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe: Any, steps: int, options: Options | None = None) -> torch.Tensor:
    pipe.acceleration = options or Options()
    generator = torch.Generator().manual_seed(7)
    return pipe(
        PROMPT, num_inference_steps=steps, guidance_scale=5.0, generator=generator, output_type="pt"
    ).images


def psnr(found: torch.Tensor, right: torch.Tensor) -> float:
    return float(-10 * (found - right).square().mean().log10())


def test_cached_steps_leave_the_picture_what_it_is(pocket: Any) -> None:
    right = make(pocket, 10)
    options = Options(step_cache=StepCache(interval=2))
    found = make(pocket, 10, options)
    assert dict(runner_of(pocket.unet, options).steps.of) == {"whole": 5, "shallow": 5}
    assert 25 < psnr(found, right) < 50
    assert psnr(right.flip(-1), right) < 20  # as another picture would be


def test_eight_bits_leave_the_picture_what_it_is(pocket: Any) -> None:
    assert 38 < psnr(make(pocket, 3, Options(linears="int8")), make(pocket, 3)) < 70
