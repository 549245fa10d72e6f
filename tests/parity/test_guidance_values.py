"""Guidance as one value where denoisers predict a variance too: the same pictures as by the scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.guidance import ClassifierFree, Interval, PerturbedAttention
from tests.parity import kandinsky_parts, unclip_parts
from tests.parity.pipeline_runs import quiet, seeded

EMBEDS = {
    name: torch.randn(1, kandinsky_parts.EMBED, generator=seeded(seed))
    for seed, name in enumerate(("image_embeds", "negative_image_embeds"))
}
MADE: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "KandinskyV22Pipeline": (
        lambda folder: diffusers.KandinskyV22Pipeline(**kandinsky_parts.decoder_2_2()),
        {"height": 64, "width": 64, "num_inference_steps": 4, **EMBEDS},
        "guidance_scale",
    ),
    "UnCLIPPipeline": (
        lambda folder: unclip_parts.unclip(folder, variation=False),
        {"prompt": "a red ball", "prior_num_inference_steps": 2, "decoder_num_inference_steps": 4},
        "decoder_guidance_scale",
    ),
}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = {}
    for name, (make, _, _) in MADE.items():
        folder = tmp_path_factory.mktemp(name)
        make(folder / "parts").save_pretrained(folder / "model")
        found[name] = quiet(calotype.DiffusionPipeline.from_pretrained(folder / "model"))
    return found


@pytest.mark.parametrize("name", MADE)
def test_the_variance_is_the_prompts_own(pipes: dict[str, Any], name: str) -> None:
    _, arguments, scale = MADE[name]
    options = {**arguments, "output_type": "pt"}

    def made(**guidance: Any) -> torch.Tensor:
        return pipes[name](**options, **guidance, generator=seeded()).images

    expected = made(**{scale: 5.0})
    assert torch.equal(made(guidance=ClassifierFree(5.0)), expected)
    assert not torch.allclose(made(guidance=Interval(ClassifierFree(5.0), end=0.5)), expected, atol=1e-3)
    assert torch.equal(made(guidance=5.0), expected)
    with pytest.raises(InputError, match=f"Both guidance and {scale} are given"):
        made(**{scale: 5.0}, guidance=5.0)
    with pytest.raises(InputError, match="has none for perturbed"):
        made(guidance=PerturbedAttention(2.0))
