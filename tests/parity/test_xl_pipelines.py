"""Stable Diffusion XL, its refiner, and both together, against the reference."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.packs import in_turn, packed
from tests.parity.pipeline_runs import Case, compare, loaded, quiet, seeded
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import stable_diffusion_xl_folder

TEXT, IMAGE, MASK, EDIT = (
    f"StableDiffusionXL{task}Pipeline" for task in ("", "Img2Img", "Inpaint", "InstructPix2Pix")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", diffusers)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "refiner", diffusers, refiner=True)


@pytest.fixture(scope="module")
def inpainting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose denoiser reads mask and masked picture."""
    folder = tmp_path_factory.mktemp("models") / "inpainting"
    return stable_diffusion_xl_folder(folder, diffusers, unet={"in_channels": 9})


def pair(name: str, folder: Path, scheduler: str | None = None) -> tuple[Any, Any]:
    pipes = [loaded(library, name, folder, scheduler) for library in (diffusers, calotype)]
    return pipes[0], pipes[1]


def embeds(count: int, negative: bool = False) -> dict[str, Any]:
    generator = seeded(9)
    found: dict[str, Any] = {"prompt": None}
    for prefix in ("", "negative_") if negative else ("",):
        found[f"{prefix}prompt_embeds"] = torch.randn(count, 16, 64, generator=generator)
        found[f"{prefix}pooled_prompt_embeds"] = torch.randn(count, 512, generator=generator)
    return found


TEXTS: dict[str, Case] = {
    "plain": dict,
    "two prompts": lambda: {
        "prompt_2": "a blue cube",
        "negative_prompt": "night",
        "negative_prompt_2": "sand",
    },
    "negative": lambda: {"negative_prompt": "night"},
    "batch": lambda: {
        "prompt": ["a ball", "a cube"],
        "negative_prompt": ["night", "day"],
        "num_images_per_prompt": 2,
    },
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "no guidance": lambda: {"guidance_scale": 0.0},
    "rescaled": lambda: {"guidance_rescale": 0.7},
    "clip skip": lambda: {"clip_skip": 1},
    "sizes": lambda: {"original_size": (30, 40), "crops_coords_top_left": (3, 5), "target_size": (50, 60)},
    "negative sizes": lambda: {
        "negative_original_size": (20, 24),
        "negative_crops_coords_top_left": (1, 2),
        "negative_target_size": (33, 44),
    },
    "one negative size": lambda: {"negative_original_size": (20, 24)},
    "embeds": lambda: embeds(2, negative=True),
    "embeds alone": lambda: embeds(1),
    "latents": lambda: {"latents": torch.randn(1, 4, 8, 8, generator=seeded(5))},
    "size": lambda: {"height": 48, "width": 72},
    "end": lambda: {"denoising_end": 0.6, "num_inference_steps": 6, "output_type": "latent"},
    "pil": lambda: {"output_type": "pil"},
    "tuple": lambda: {"return_dict": False},
}

PICTURES: dict[str, Case] = {
    "plain": dict,
    "strong": lambda: {"strength": 0.9},
    "several": lambda: {"num_images_per_prompt": 2, "strength": 0.7},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)], "strength": 0.7},
    "score": lambda: {"aesthetic_score": 5.0, "negative_aesthetic_score": 1.0, "strength": 0.6},
    "sizes": lambda: {"original_size": (30, 40), "negative_target_size": (33, 44), "strength": 0.6},
    "start": lambda: {"image": torch.randn(1, 4, 8, 8, generator=seeded(5)), "denoising_start": 0.6},
    "start and end": lambda: {
        "image": torch.randn(1, 4, 8, 8, generator=seeded(5)),
        "denoising_start": 0.3,
        "denoising_end": 0.8,
        "output_type": "latent",
    },
}

SCHEDULERS = [None, "DDPMScheduler", "HeunDiscreteScheduler"]
"""One of each way that a pipeline speaks to its scheduler: samples that are scaled for the model, arguments of a step
and its noise, and two timesteps for one step."""
STEPPING = ("strong", "start and end")
"""Cases that say which steps are taken, so that it matters how many each scheduler makes of them."""


ON_TEXTS = packed(TEXTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "scheduler"), in_turn(ON_TEXTS, SCHEDULERS, ("end",)))
def test_text_to_image(folder: Path, case: str, scheduler: str | None) -> None:
    compare(*pair(TEXT, folder, scheduler), ON_TEXTS[case])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "case", "scheduler"),
    [("refiner", *one) for one in in_turn(PICTURES, SCHEDULERS, STEPPING)]
    + [("base", *one) for one in in_turn(PICTURES, SCHEDULERS)],
)
def test_image_to_image(folder: Path, refiner: Path, kind: str, case: str, scheduler: str | None) -> None:
    steps = {"num_inference_steps": 6, "image": photo()}
    pipes = pair(IMAGE, folder if kind == "base" else refiner, scheduler)
    compare(*pipes, lambda: {**steps, **PICTURES[case]()})


MASKED: dict[str, Case] = {
    "plain": dict,
    "weak": lambda: {"strength": 0.6},
    "full": lambda: {"strength": 1.0},
    "several": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "cropped": lambda: {"padding_mask_crop": 4, "output_type": "pil"},
    "size": lambda: {"height": 48, "width": 80},
    "start": lambda: {"denoising_start": 0.4},
}
ON_MASKED = packed(MASKED)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ON_MASKED)
def test_inpainting_with_any_checkpoint(folder: Path, case: str) -> None:
    steps = {"num_inference_steps": 5, "image": photo(), "mask_image": mask()}
    compare(*pair(MASK, folder), lambda: {**steps, **ON_MASKED[case]()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ON_MASKED)
def test_inpainting_with_its_own_checkpoint(inpainting_folder: Path, case: str) -> None:
    steps = {"num_inference_steps": 5, "image": photo(), "mask_image": mask()}
    compare(*pair(MASK, inpainting_folder), lambda: {**steps, **ON_MASKED[case]()})


def test_base_and_refiner_as_an_ensemble(folder: Path, refiner: Path) -> None:
    results = []
    for library in (diffusers, calotype):
        base = quiet(library.StableDiffusionXLPipeline.from_pretrained(folder))
        second = quiet(library.StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner))
        options = {"prompt": "a red ball", "num_inference_steps": 8}
        latents = base(**options, denoising_end=0.75, output_type="latent", generator=seeded()).images
        results.append(
            second(
                **options, image=latents, denoising_start=0.75, output_type="np", generator=seeded(1)
            ).images
        )
    np.testing.assert_allclose(results[1], results[0], atol=1e-4)


SIGNATURES = [
    (name, method)
    for name in (TEXT, IMAGE, MASK, EDIT)
    for method in ("__init__", "__call__", "encode_prompt")
    if (name, method) != (EDIT, "encode_prompt")  # which has one argument more here, clip_skip
]


@pytest.mark.parametrize(("name", "method"), SIGNATURES)
def test_signature(name: str, method: str) -> None:
    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "embeds without pooled": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 16, 64)},
        "without pooled_prompt_embeds",
    ),
    "no such end": ({"denoising_end": 1.5}, "denoising_end must be between 0 and 1"),
    "an end before the first step": ({"denoising_end": 0.001, "num_inference_steps": 2}, "leaves no step"),
    "a number as second prompt": ({"prompt_2": 3}, "prompt_2 must be a text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(folder: Path, case: str) -> None:
    arguments, words = REFUSED[case]
    pipe = quiet(calotype.StableDiffusionXLPipeline.from_pretrained(folder))
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    with pytest.raises(InputError, match=words):
        pipe(**{"prompt": "a ball", "num_inference_steps": 3, **arguments})


def test_a_start_after_the_end_is_refused(folder: Path) -> None:
    pipe = quiet(calotype.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder))
    with pytest.raises(InputError, match="denoising_start=0.8 is not before denoising_end=0.5"):
        pipe("a ball", image=photo(), denoising_start=0.8, denoising_end=0.5)


def test_a_refiner_without_its_score_is_refused(refiner: Path) -> None:
    pipe = quiet(calotype.StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner))
    pipe.register_to_config(requires_aesthetics_score=False)
    with pytest.raises(InputError, match="requires_aesthetics_score=True"):
        pipe("a ball", image=photo())


def test_a_half_precision_decoder_that_overflows_works_in_float32(folder: Path) -> None:
    """The autoencoder says so in its configuration; it is not changed for it."""
    pipe = quiet(calotype.StableDiffusionXLPipeline.from_pretrained(folder))
    expected = pipe("a ball", num_inference_steps=1, generator=seeded(), output_type="pt").images
    pipe.vae.to(torch.float16)
    found = pipe("a ball", num_inference_steps=1, generator=seeded(), output_type="pt").images
    assert pipe.vae.dtype == torch.float16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose denoiser reads a picture beside the latents."""
    return stable_diffusion_xl_folder(
        tmp_path_factory.mktemp("models") / "edit", diffusers, unet={"in_channels": 8}
    )


EDITS: dict[str, Case] = {
    "plain": dict,
    "scales": lambda: {"guidance_scale": 3.0, "image_guidance_scale": 2.0},
    "rescaled": lambda: {"guidance_rescale": 0.7},
    "no guidance by text": lambda: {"guidance_scale": 1.0},
    "no guidance by picture": lambda: {"image_guidance_scale": 0.5},
    "negative": lambda: {"negative_prompt": "night", "negative_prompt_2": "sand", "prompt_2": "a cube"},
    "batch": lambda: {"prompt": ["a ball", "a cube"], "num_images_per_prompt": 2},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "size": lambda: {"height": 48, "width": 72},
    "another picture's size": lambda: {"image": photo(100, 60)},
    "micro-conditions": lambda: {
        "original_size": (30, 40),
        "crops_coords_top_left": (3, 5),
        "target_size": (50, 60),
    },
    "latents as picture": lambda: {"image": torch.randn(1, 4, 8, 8, generator=seeded(5))},
    "end": lambda: {"denoising_end": 0.6, "num_inference_steps": 6, "output_type": "latent"},
    "embeds": lambda: embeds(1, negative=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(EDITS))
def test_editing(editing: Path, case: str) -> None:
    compare(*pair(EDIT, editing), lambda: {"image": photo(), **packed(EDITS)[case]()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduler", [None, "DDIMScheduler"], ids=str)
def test_editing_as_cosxl(editing: Path, scheduler: str | None) -> None:
    """Its denoiser reads the picture in its own unit."""
    pipes = []
    for library in (diffusers, calotype):
        pipe = quiet(getattr(library, EDIT).from_pretrained(editing, is_cosxl_edit=True))
        if scheduler is not None:
            pipe.scheduler = getattr(library, scheduler).from_config(pipe.scheduler.config)
        pipes.append(pipe)
    compare(pipes[0], pipes[1], lambda: {"image": photo()})
    plain = quiet(calotype.StableDiffusionXLInstructPix2PixPipeline.from_pretrained(editing))
    plain.scheduler = pipes[1].scheduler
    options = {"image": photo(), "num_inference_steps": 2, "output_type": "pt"}
    made = [pipe("a ball", generator=seeded(), **options).images for pipe in (pipes[1], plain)]
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_editing_with_a_denoiser_that_reads_no_picture_is_refused(folder: Path) -> None:
    pipe = quiet(calotype.StableDiffusionXLInstructPix2PixPipeline.from_pretrained(folder))
    with pytest.raises(InputError, match="reads 4 channels; this task needs one that reads 8"):
        pipe("a ball", image=photo())


def test_cosxl_editing_is_kept_in_the_files(editing: Path, tmp_path: Path) -> None:
    pipe = calotype.StableDiffusionXLInstructPix2PixPipeline.from_pretrained(editing, is_cosxl_edit=True)
    pipe.save_pretrained(tmp_path)
    assert calotype.DiffusionPipeline.from_pretrained(tmp_path).config.is_cosxl_edit
    assert diffusers.DiffusionPipeline.from_pretrained(tmp_path).is_cosxl_edit
