"""Checkpoints in the shape of published ones, each with its own scheduler's settings, loaded by both libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

import calotype
from tests.parity.deviations import deviation
from tests.parity.pipeline_runs import compare, quiet, seeded
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import (
    VAE,
    randomise,
    stable_diffusion_parts,
    stable_diffusion_xl_parts,
)

pytestmark = pytest.mark.filterwarnings("ignore")

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EARLY = {"set_alpha_to_one": False, "skip_prk_steps": True}
"""Entries of PNDM and DDIM that stand in the files of all."""


@dataclass(frozen=True)
class Published:
    """How a published checkpoint differs from the tiny one of its family, and how it is called."""

    scheduler: str
    settings: dict[str, Any]
    parts: Callable[..., dict[str, Any]] = stable_diffusion_xl_parts
    vae: dict[str, Any] = field(default_factory=dict)
    unet: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return "StableDiffusionXL" if self.parts is stable_diffusion_xl_parts else "StableDiffusion"


ONE_STEP: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 0.0}
SD2 = {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True}

PUBLISHED = {
    "SDXL base 1.0": Published(
        "EulerDiscreteScheduler",
        {**SCALED_LINEAR, **EARLY, "steps_offset": 1, "timestep_spacing": "leading", "sample_max_value": 1.0},
        vae={"scaling_factor": 0.13025, "force_upcast": True},
    ),
    "SDXL Turbo": Published(
        "EulerAncestralDiscreteScheduler",
        {**SCALED_LINEAR, **EARLY, "clip_sample": False, "steps_offset": 1, "timestep_spacing": "trailing"},
        vae={"scaling_factor": 0.13025},
        call=ONE_STEP,
    ),
    "SDXL Turbo in four steps": Published(
        "EulerAncestralDiscreteScheduler",
        {**SCALED_LINEAR, **EARLY, "steps_offset": 1, "timestep_spacing": "trailing"},
        vae={"scaling_factor": 0.13025},
        call={**ONE_STEP, "num_inference_steps": 4},
    ),
    "SDXL Lightning": Published(
        "EulerDiscreteScheduler",
        {**SCALED_LINEAR, "timestep_spacing": "trailing"},
        vae={"scaling_factor": 0.13025},
        call={**ONE_STEP, "num_inference_steps": 4},
    ),
    "SDXL with v-prediction and zero terminal SNR": Published(
        "EulerDiscreteScheduler",
        {
            **SCALED_LINEAR,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        vae={"scaling_factor": 0.13025},
        call={"guidance_rescale": 0.7},
    ),
    "Playground v2": Published(
        "EulerAncestralDiscreteScheduler",
        {**SCALED_LINEAR, **EARLY, "steps_offset": 1, "timestep_spacing": "leading", "sample_max_value": 1.0},
        vae={"scaling_factor": 0.13025},
        call={"guidance_scale": 3.0},
    ),
    "Playground v2.5": Published(
        "EDMDPMSolverMultistepScheduler",
        {
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "rho": 7.0,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "final_sigmas_type": "zero",
            "euler_at_final": False,
        },
        vae={
            "scaling_factor": 0.5,
            "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
            "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
        },
        call={"guidance_scale": 3.0},
    ),
    "Playground v2.5 with EDM's Euler": Published(
        "EDMEulerScheduler",
        {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"},
        vae={
            "scaling_factor": 0.5,
            "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
            "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
        },
        call={"guidance_scale": 3.0},
    ),
    "CosXL": Published(
        "EDMEulerScheduler",
        {
            "sigma_min": 0.002,
            "sigma_max": 120.0,
            "sigma_data": 1.0,
            "prediction_type": "v_prediction",
            "sigma_schedule": "exponential",
        },
        vae={"scaling_factor": 0.13025},
        call={"guidance_scale": 4.0},
    ),
    "Stable Diffusion 1.5": Published(
        "PNDMScheduler",
        {**SCALED_LINEAR, **EARLY, "steps_offset": 1, "trained_betas": None},
        stable_diffusion_parts,
    ),
    "Stable Diffusion 2.1": Published(
        "DDIMScheduler",
        {
            **SCALED_LINEAR,
            "set_alpha_to_one": False,
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "steps_offset": 1,
        },
        stable_diffusion_parts,
        unet=SD2,
    ),
    "Stable Diffusion 2.1 with a fast solver": Published(
        "DPMSolverMultistepScheduler",
        {**SCALED_LINEAR, "prediction_type": "v_prediction", "steps_offset": 1},
        stable_diffusion_parts,
        unet=SD2,
    ),
    "Stable Diffusion 2.1 base": Published(
        "PNDMScheduler",
        {**SCALED_LINEAR, **EARLY, "steps_offset": 1},
        stable_diffusion_parts,
        unet={**SD2, "upcast_attention": False},
    ),
    "SD Turbo": Published(
        "EulerDiscreteScheduler",
        {**SCALED_LINEAR, "steps_offset": 1, "timestep_spacing": "trailing", "prediction_type": "epsilon"},
        stable_diffusion_parts,
        unet=SD2,
        call=ONE_STEP,
    ),
}

TASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "": dict,
    "Img2Img": lambda: {"image": photo(), "strength": 0.6, "num_inference_steps": 5},
    "Inpaint": lambda: {"image": photo(), "mask_image": mask(), "strength": 0.8, "num_inference_steps": 5},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a checkpoint by the reference, once."""
    root = tmp_path_factory.mktemp("published")

    @cache
    def make(name: str) -> Path:
        published, path = PUBLISHED[name], root / name.replace(" ", "-")
        parts = published.parts(diffusers, root / "parts", unet=published.unet)
        parts["vae"] = randomise(diffusers.AutoencoderKL(**VAE, **published.vae), 2)
        parts["scheduler"] = getattr(diffusers, published.scheduler)()
        getattr(diffusers, f"{published.prefix}Pipeline")(**parts).save_pretrained(path)
        # as the file was published, entries of other schedulers included
        settings = {"_class_name": published.scheduler, "_diffusers_version": "0.24.0", **published.settings}
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
        return path

    return make


@cache
def models(library: Any, name: str, folder: Path) -> dict[str, Any]:
    """A checkpoint's networks and tokenizers, read once for all tasks."""
    pipe = getattr(library, f"{PUBLISHED[name].prefix}Pipeline").from_pretrained(folder)
    return {key: part for key, part in pipe.components.items() if part is not None and key != "scheduler"}


def pair(made: Callable[[str], Path], name: str, task: str) -> tuple[Any, Any]:
    """The task's pipelines from the files, their schedulers anew each time."""
    published, folder = PUBLISHED[name], made(name)
    pipes = [
        quiet(
            getattr(library, f"{published.prefix}{task}Pipeline").from_pretrained(
                folder, **models(library, name, folder)
            )
        )
        for library in (diffusers, calotype)
    ]
    assert [type(pipe.scheduler).__name__ for pipe in pipes] == [published.scheduler] * 2
    return pipes[0], pipes[1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_loaded_and_called_as_published(
    made: Callable[[str], Path], name: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = PUBLISHED[name]
    theirs, ours = pair(made, name, task)
    arguments = {**published.call, **TASKS[task]()}
    if published.call.get("num_inference_steps") == 1 and task:
        arguments |= {"num_inference_steps": 2, "strength": 0.5}  # so that one step is left
    if task == "Inpaint" and "latents_mean" in published.vae:
        assert deviation("pipelines/StableDiffusionXLInpaintPipeline/latents_mean")
        encode = theirs._encode_vae_image
        monkeypatch.setattr(
            theirs,
            "_encode_vae_image",
            lambda image, generator: normalised(encode(image, generator), theirs.vae),
        )
    compare(theirs, ours, lambda: dict(arguments))


def normalised(latents: torch.Tensor, vae: Any) -> torch.Tensor:
    """Scaled latents, by the mean and deviation of their channels as well, as these checkpoints were trained."""
    scale = vae.config.scaling_factor
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (latents / scale - mean) * scale / std


def test_what_the_mask_keeps_is_kept(made: Callable[[str], Path]) -> None:
    """With channels' means and deviations too, where the reference's latents are in one unit and decoded in another."""
    theirs, ours = pair(made, "Playground v2.5", "Inpaint")
    picture, nothing = photo(), Image.new("L", (64, 64), 0)
    options = {"image": picture, "mask_image": nothing, "num_inference_steps": 2, "output_type": "pt"}
    pixels = theirs.image_processor.preprocess(picture)
    with torch.no_grad():
        expected = ours.vae.decode(ours.vae.encode(pixels).latent_dist.sample(seeded())).sample / 2 + 0.5
    distances = [
        (pipe("a ball", generator=seeded(), **options).images - expected.clamp(0, 1)).abs().max()
        for pipe in (theirs, ours)
    ]
    assert distances[1] < 1e-4
    assert distances[0] > 0.1
