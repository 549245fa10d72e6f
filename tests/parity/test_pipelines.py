"""Pipelines against the reference: the same folder, the same arguments and generators, the same pictures."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from tests.parity.packs import packed
from tests.parity.pipeline_runs import TOLERANCE, Case, compare, quiet, seeded
from tests.tiny import UNET, randomise, stable_diffusion_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Stable Diffusion checkpoint, saved by the reference."""
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny", diffusers)


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    """The reference's pipeline and ours from the same files."""
    theirs, ours = (
        quiet(library.StableDiffusionPipeline.from_pretrained(folder)) for library in (diffusers, calotype)
    )
    if not hasattr(theirs.text_encoder, "text_model"):
        # the reference's clip_skip reads this attribute, which transformers 5 took away
        theirs.text_encoder.__dict__["text_model"] = theirs.text_encoder
    return theirs, ours


def embeds(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def slowed(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    tensors["latents"] = tensors["latents"] * 0.9
    return tensors


def unguided_from_step_two(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if index == 1:
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return tensors


def interrupted_at_step_two(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if index == 1:
        pipe._interrupt = True
    return tensors


CALLS: dict[str, Case] = {
    "plain": dict,
    "one step": lambda: {"num_inference_steps": 1},
    "negative": lambda: {"negative_prompt": "blue cube"},
    "batch": lambda: {
        "prompt": ["a red ball", "a big blue cube on sand"],
        "negative_prompt": ["night", "day"],
    },
    "pictures a prompt": lambda: {"prompt": ["a ball", "a cube"], "num_images_per_prompt": 2},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "strong guidance": lambda: {"guidance_scale": 15.0},
    "rescaled guidance": lambda: {"guidance_rescale": 0.7},
    "clip skip": lambda: {"clip_skip": 1},
    "clip skip two": lambda: {"clip_skip": 2, "negative_prompt": "a cone"},
    "size": lambda: {"height": 40, "width": 72},
    "latents": lambda: {"latents": embeds(1, 4, 8, 8)},
    "latents of another size": lambda: {"latents": embeds(1, 4, 6, 10)},
    "prompt embeds": lambda: {"prompt": None, "prompt_embeds": embeds(1, 16, 32)},
    "both embeds": lambda: {
        "prompt": None,
        "prompt_embeds": embeds(2, 16, 32),
        "negative_prompt_embeds": embeds(2, 16, 32, seed=6),
    },
    "long prompt": lambda: {"prompt": "a red ball and a blue cube on the green grass at night"},
    "empty prompt": lambda: {"prompt": ""},
    "callback": lambda: {"callback_on_step_end": slowed},
    "guidance ends": lambda: {
        "callback_on_step_end": unguided_from_step_two,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds", "negative_prompt_embeds"],
        "num_inference_steps": 4,
    },
    "interrupted": lambda: {"callback_on_step_end": interrupted_at_step_two, "num_inference_steps": 5},
    "latent output": lambda: {"output_type": "latent"},
    "tensor output": lambda: {"output_type": "pt"},
    "pil output": lambda: {"output_type": "pil"},
    "tuple": lambda: {"return_dict": False},
    "attention arguments": lambda: {"cross_attention_kwargs": {"scale": 1.0}},
}

SCHEDULERS: dict[str, dict[str, Any]] = {
    "PNDMScheduler": {},
    "DDIMScheduler": {"eta": 0.5},
    "DDPMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
}


@pytest.mark.parametrize("case", packed(CALLS))
def test_call(pair: tuple[Any, Any], case: str) -> None:
    compare(*pair, packed(CALLS)[case])


@pytest.mark.parametrize("steps", [1, 4, 11])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(folder: Path, name: str, steps: int) -> None:
    pipes = []
    for library in (diffusers, calotype):
        pipe = quiet(library.StableDiffusionPipeline.from_pretrained(folder))
        pipe.scheduler = getattr(library, name).from_config(pipe.scheduler.config)
        pipes.append(pipe)
    compare(*pipes, lambda: {"num_inference_steps": steps, **SCHEDULERS[name]})


@pytest.mark.parametrize(
    "custom",
    [{"timesteps": [900, 500, 200, 10]}, {"sigmas": [14.0, 5.0, 1.0, 0.2]}],
    ids=["timesteps", "sigmas"],
)
def test_custom_path(folder: Path, custom: dict[str, Any]) -> None:
    pipes = []
    for library in (diffusers, calotype):
        pipe = quiet(library.StableDiffusionPipeline.from_pretrained(folder))
        pipe.scheduler = library.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        pipes.append(pipe)
    compare(*pipes, lambda: custom)


def test_guidance_as_an_embedding(tmp_path: Path) -> None:
    """A distilled UNet is told the guidance scale instead of being run twice."""
    folder = stable_diffusion_folder(tmp_path / "distilled", diffusers, unet={"time_cond_proj_dim": 32})
    pipes = [
        quiet(library.StableDiffusionPipeline.from_pretrained(folder)) for library in (diffusers, calotype)
    ]
    compare(*pipes, lambda: {"guidance_scale": 8.5})


def test_v_prediction(folder: Path) -> None:
    pipes = []
    for library in (diffusers, calotype):
        pipe = quiet(library.StableDiffusionPipeline.from_pretrained(folder))
        pipe.scheduler = library.DDIMScheduler.from_config(
            pipe.scheduler.config, prediction_type="v_prediction"
        )
        pipes.append(pipe)
    compare(*pipes, dict)


def test_early_scheduler_settings_are_repaired(folder: Path) -> None:
    pipes = []
    for library in (diffusers, calotype):
        scheduler = library.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=True, steps_offset=0)
        pipe = quiet(library.StableDiffusionPipeline.from_pretrained(folder, scheduler=scheduler))
        assert pipe.scheduler.config.clip_sample is False
        assert pipe.scheduler.config.steps_offset == 1
        pipes.append(pipe)
    compare(*pipes, dict)


def test_what_we_save_the_reference_loads(pair: tuple[Any, Any], tmp_path: Path) -> None:
    theirs, ours = pair
    ours.save_pretrained(tmp_path / "saved")
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved"))
    assert type(loaded) is diffusers.StableDiffusionPipeline
    compare(theirs, loaded, dict)
    again = quiet(calotype.DiffusionPipeline.from_pretrained(tmp_path / "saved"))
    assert type(again) is calotype.StableDiffusionPipeline
    compare(theirs, again, dict)


@pytest.mark.parametrize("name", ["DDPMPipeline", "DDIMPipeline"])
@pytest.mark.parametrize("batch", [1, 2])
def test_unconditional(name: str, batch: int, tmp_path: Path) -> None:
    config = {
        **{k: v for k, v in UNET.items() if k not in ("cross_attention_dim", "in_channels", "out_channels")},
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    unet = randomise(diffusers.UNet2DModel(**config))
    getattr(diffusers, name)(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    options = {"eta": 0.4} if name == "DDIMPipeline" else {}
    expected, found = (
        quiet(getattr(library, name).from_pretrained(tmp_path))(
            batch_size=batch, num_inference_steps=4, generator=seeded(), output_type="np", **options
        ).images
        for library in (diffusers, calotype)
    )
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


PUBLIC = ["StableDiffusionPipeline", "DDPMPipeline", "DDIMPipeline"]


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", PUBLIC)
def test_signature(name: str, method: str) -> None:
    """Names, order, kinds and defaults of the arguments are the reference's."""

    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


@pytest.mark.parametrize("method", ["encode_prompt"])
def test_method_signature(method: str) -> None:
    theirs, ours = (
        inspect.signature(getattr(library.StableDiffusionPipeline, method))
        for library in (diffusers, calotype)
    )
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]


def test_encode_prompt(pair: tuple[Any, Any]) -> None:
    arguments = (["a red ball", "a cube"], "cpu", 2, True, ["night", "day"])
    theirs, ours = (pipe.encode_prompt(*arguments) for pipe in pair)
    for expected, found in zip(theirs, ours, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
