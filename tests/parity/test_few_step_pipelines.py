"""Latent consistency models against the reference."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError, UnknownClassError
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, loaded, quiet, seeded
from tests.tiny import SCHEDULER, stable_diffusion_parts

TEXT, IMAGE = "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random consistency model, saved by the reference."""
    path = tmp_path_factory.mktemp("lcm")
    parts = stable_diffusion_parts(diffusers, path / "parts", unet={"time_cond_proj_dim": 32})
    betas = {k: v for k, v in SCHEDULER.items() if k.startswith("beta")}
    parts["scheduler"] = diffusers.LCMScheduler(**betas)
    getattr(diffusers, TEXT)(**parts, requires_safety_checker=False).save_pretrained(path / "checkpoint")
    return path / "checkpoint"


def pair(name: str, folder: Path) -> tuple[Any, Any]:
    theirs, ours = (loaded(library, name, folder) for library in (diffusers, calotype))
    if not hasattr(theirs.text_encoder, "text_model"):
        # the reference's clip_skip reads this attribute, which transformers 5 took away
        theirs.text_encoder.__dict__["text_model"] = theirs.text_encoder
    return theirs, ours


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def dimmed(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor * 0.8 for name, tensor in tensors.items()}


CALLS: dict[str, Case] = {
    "plain": dict,
    "one step": lambda: {"num_inference_steps": 1},
    "eight steps": lambda: {"num_inference_steps": 8},
    "batch": lambda: {"prompt": ["a red ball", "a cube"], "num_images_per_prompt": 2},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "weak guidance": lambda: {"guidance_scale": 1.0},
    "strong guidance": lambda: {"guidance_scale": 14.0},
    "longer teacher": lambda: {"original_inference_steps": 100, "num_inference_steps": 6},
    "timesteps": lambda: {"timesteps": [879, 699, 499, 259, 39]},
    "clip skip": lambda: {"clip_skip": 1},
    "embeds": lambda: {"prompt": None, "prompt_embeds": noise(2, 16, 32)},
    "callback": lambda: {
        "callback_on_step_end": dimmed,
        "callback_on_step_end_tensor_inputs": ["latents", "denoised", "prompt_embeds", "w_embedding"],
    },
    "latent output": lambda: {"output_type": "latent"},
    "tensor output": lambda: {"output_type": "pt"},
    "pil output": lambda: {"output_type": "pil"},
    "tuple": lambda: {"return_dict": False},
}

OWN: dict[str, dict[str, Case]] = {
    TEXT: {
        "size": lambda: {"height": 40, "width": 72},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
    },
    IMAGE: {
        "size": lambda: {"image": photo(75, 50)},
        "weak": lambda: {"strength": 0.25},
        "full": lambda: {"strength": 1.0},
        "late timesteps": lambda: {"timesteps": [879, 699, 499, 259, 39], "strength": 0.5},
        "pictures": lambda: {"prompt": ["a ball", "a cube"], "image": [photo(), photo(seed=1)]},
        "tensor": lambda: {"image": torch.rand(1, 3, 64, 64, generator=seeded(5))},
        "latents as picture": lambda: {"image": noise(1, 4, 8, 8)},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
    },
}


def call(name: str, make: Case) -> Case:
    picture = {"image": photo()} if name == IMAGE else {}
    return lambda: {**picture, "num_inference_steps": 4, **make()}


PACKED = {name: packed({**CALLS, **own}) for name, own in OWN.items()}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, own in PACKED.items() for case in own])
def test_call(folder: Path, name: str, case: str) -> None:
    compare(*pair(name, folder), call(name, PACKED[name][case]))


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", OWN)
def test_signature(name: str, method: str) -> None:
    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


def test_pipelines_chosen_by_task(folder: Path) -> None:
    for library in (diffusers, calotype):
        pipe = library.AutoPipelineForText2Image.from_pretrained(folder)
        assert type(pipe).__name__ == TEXT
        assert type(library.AutoPipelineForImage2Image.from_pipe(pipe)).__name__ == IMAGE
    with pytest.raises(UnknownClassError, match="has no pipeline for inpainting; it has LatentConsistency"):
        calotype.AutoPipelineForInpainting.from_pipe(pipe)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no picture": (IMAGE, {"image": None}, "image is not given"),
    "more steps than the teacher": (TEXT, {"num_inference_steps": 51}, "more than the 50 steps"),
    "more steps than remain": (IMAGE, {"num_inference_steps": 30, "strength": 0.5}, "more than the 25 steps"),
    "no such strength": (IMAGE, {"strength": 1.5}, "strength must be between 0 and 1"),
    "no teacher": (TEXT, {"original_inference_steps": 0}, "original_inference_steps must be a whole number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(folder: Path, case: str) -> None:
    name, arguments, words = REFUSED[case]
    pipe = quiet(getattr(calotype, name).from_pretrained(folder))
    with pytest.raises(InputError, match=words):
        pipe(**{"prompt": "a ball", **call(name, lambda: arguments)()})


def test_other_schedulers_and_denoisers_are_refused(folder: Path, tmp_path: Path) -> None:
    pipe = quiet(getattr(calotype, TEXT).from_pretrained(folder))
    usual = pipe.scheduler
    pipe.scheduler = calotype.EulerDiscreteScheduler()
    with pytest.raises(InputError, match="such as LCMScheduler, not EulerDiscreteScheduler"):
        pipe("a ball")
    pipe.scheduler = usual
    pipe.unet = stable_diffusion_parts(calotype, tmp_path)["unet"]
    with pytest.raises(InputError, match="no time_cond_proj_dim"):
        pipe("a ball")
