"""Image-to-image and inpainting against the reference."""

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
from calotype.core.errors import InputError
from tests.parity.deviations import deviation
from tests.parity.packs import in_turn, packed
from tests.parity.pipeline_runs import Case, compare, loaded, quiet, seeded
from tests.tiny import stable_diffusion_folder

CLASSES = ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny", diffusers)


@pytest.fixture(scope="module")
def inpainting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose denoiser reads mask and masked picture."""
    return stable_diffusion_folder(
        tmp_path_factory.mktemp("models") / "inpainting", diffusers, unet={"in_channels": 9}
    )


def pair(name: str, folder: Path, scheduler: str | None = None) -> tuple[Any, Any]:
    pipes = [loaded(library, name, folder, scheduler) for library in (diffusers, calotype)]
    return pipes[0], pipes[1]


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def mask(width: int = 64, height: int = 64) -> Image.Image:
    image = Image.new("L", (width, height))
    image.paste(255, (width // 4, height // 8, width // 2 + 3, height // 2))
    return image


IMAGE_CALLS: dict[str, Case] = {
    "plain": dict,
    "size": lambda: {"image": photo(75, 50)},
    "weak": lambda: {"strength": 0.25},
    "one step of many": lambda: {"strength": 0.01, "num_inference_steps": 100},
    "full": lambda: {"strength": 1.0},
    "batch": lambda: {
        "prompt": ["a red ball", "a cube"],
        "image": [photo(), photo(seed=1)],
        "negative_prompt": ["night", "day"],
    },
    "one picture for many": lambda: {"num_images_per_prompt": 3},
    "generators": lambda: {
        "image": photo(),
        "num_images_per_prompt": 2,
        "generator": [seeded(3), seeded(4)],
    },
    "tensor": lambda: {"image": torch.rand(1, 3, 64, 64, generator=seeded(5))},
    "array": lambda: {"image": torch.rand(1, 48, 64, 3, generator=seeded(5)).numpy()},
    "latents as picture": lambda: {"image": torch.randn(1, 4, 8, 8, generator=seeded(5))},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "latent output": lambda: {"output_type": "latent"},
    "pil output": lambda: {"output_type": "pil"},
    "clip skip": lambda: {"prompt": "a cone", "num_inference_steps": 7},
}

MASK_CALLS: dict[str, Case] = {
    "plain": dict,
    "weak": lambda: {"strength": 0.5},
    "nearly full": lambda: {"strength": 0.9999, "num_inference_steps": 6},
    "size": lambda: {"height": 48, "width": 80},
    "another size of mask": lambda: {"mask_image": mask(31, 90)},
    "pictures a prompt": lambda: {"num_images_per_prompt": 2},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "batch": lambda: {
        "prompt": ["a ball", "a cube"],
        "image": [photo(), photo(seed=1)],
        "mask_image": [mask()] * 2,
    },
    "no guidance": lambda: {"guidance_scale": 0.0},
    "latents": lambda: {"latents": torch.randn(1, 4, 8, 8, generator=seeded(6))},
    "cropped": lambda: {"padding_mask_crop": 4, "output_type": "pil"},
    "cropped in a larger picture": lambda: {
        "image": photo(120, 96),
        "mask_image": mask(120, 96),
        "padding_mask_crop": 16,
        "output_type": "pil",
        "strength": 0.7,
    },
    "tensors": lambda: {
        "image": torch.rand(1, 3, 64, 64, generator=seeded(5)),
        "mask_image": (torch.rand(1, 1, 64, 64, generator=seeded(7)) > 0.5).float(),
    },
    "latent output": lambda: {"output_type": "latent"},
}

SCHEDULERS = [None, "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
"""The checkpoint's own takes a timestep twice; the samples of one are scaled for the model, and one has a history."""
STEPPING = ("weak", "one step of many", "nearly full", "full")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "scheduler"), in_turn(packed(IMAGE_CALLS), SCHEDULERS, STEPPING))
def test_image_to_image(folder: Path, case: str, scheduler: str | None) -> None:
    usual = {"num_inference_steps": 4, "image": photo()}
    compare(*pair(CLASSES[0], folder, scheduler), lambda: {**usual, **packed(IMAGE_CALLS)[case]()})


def masked(make: Case) -> Case:
    return lambda: {"num_inference_steps": 4, "image": photo(), "mask_image": mask(), **make()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "scheduler"), in_turn(packed(MASK_CALLS), SCHEDULERS, STEPPING))
def test_inpainting_with_any_checkpoint(folder: Path, case: str, scheduler: str | None) -> None:
    compare(*pair(CLASSES[1], folder, scheduler), masked(packed(MASK_CALLS)[case]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(MASK_CALLS))
def test_inpainting_with_its_own_checkpoint(inpainting_folder: Path, case: str) -> None:
    compare(*pair(CLASSES[1], inpainting_folder, "EulerDiscreteScheduler"), masked(packed(MASK_CALLS)[case]))


def test_the_mask_can_be_changed_between_steps(inpainting_folder: Path) -> None:
    def grown(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"mask": torch.ones_like(tensors["mask"])}

    options = {
        "callback_on_step_end": grown,
        "callback_on_step_end_tensor_inputs": ["latents", "mask", "masked_image_latents"],
        "guidance_scale": 1.0,
    }
    compare(*pair(CLASSES[1], inpainting_folder), masked(lambda: options))


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", CLASSES)
def test_signature(name: str, method: str) -> None:
    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no picture": (CLASSES[0], {}, "image is not given"),
    "no such strength": (
        CLASSES[0],
        {"image": photo(), "strength": 1.5},
        "strength must be between 0 and 1, not 1.5",
    ),
    "nothing to do": (CLASSES[0], {"image": photo(), "strength": 0.1}, "leaves none to take"),
    "no text": (CLASSES[0], {"image": "photo.png"}, "A picture must be"),
    "pictures do not match": (
        CLASSES[0],
        {"image": [photo()] * 2, "num_images_per_prompt": 3},
        "2 pictures .* for 3",
    ),
    "no mask": (CLASSES[1], {"image": photo()}, "mask_image is not given"),
    "empty mask": (
        CLASSES[1],
        {"image": photo(), "mask_image": Image.new("L", (64, 64)), "padding_mask_crop": 8},
        "marks nothing",
    ),
    "crop of a tensor": (
        CLASSES[1],
        {"image": torch.zeros(1, 3, 64, 64), "mask_image": mask(), "padding_mask_crop": 8},
        "as PIL images",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(folder: Path, case: str) -> None:
    name, arguments, words = REFUSED[case]
    pipe = quiet(getattr(calotype, name).from_pretrained(folder))
    with pytest.raises(InputError, match=words):
        pipe("a ball", num_inference_steps=3, **{"output_type": "pil", **arguments})


def test_a_denoiser_that_cannot_inpaint_is_refused(tmp_path: Path) -> None:
    odd = stable_diffusion_folder(tmp_path / "odd", calotype, unet={"in_channels": 5})
    pipe = calotype.StableDiffusionInpaintPipeline.from_pretrained(odd)
    with pytest.raises(InputError, match="reads 5 channels; this task needs one that reads 4 or 9"):
        pipe("a ball", image=photo(), mask_image=mask())


AUTO = {
    "AutoPipelineForText2Image": "StableDiffusionPipeline",
    "AutoPipelineForImage2Image": CLASSES[0],
    "AutoPipelineForInpainting": CLASSES[1],
}


@pytest.mark.parametrize("name", AUTO)
def test_auto_pipelines(folder: Path, name: str) -> None:
    """From a checkpoint, and from another task's pipeline with its components."""
    for library in (diffusers, calotype):
        auto = getattr(library, name)
        loaded = auto.from_pretrained(folder)
        assert type(loaded).__name__ == AUTO[name]
        for other in AUTO:
            turned = getattr(library, other).from_pipe(loaded)
            assert type(turned).__name__ == AUTO[other]
            assert turned.unet is loaded.unet


def test_shared_models_keep_their_type(folder: Path) -> None:
    assert deviation("pipelines/StableDiffusionInpaintPipeline/from_pipe;torch_dtype")
    types = []
    for library in (diffusers, calotype):
        pipe = library.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
        other = library.StableDiffusionInpaintPipeline.from_pipe(pipe)
        types.append((pipe.unet.dtype, other.unet.dtype))
    assert types == [(torch.float32,) * 2, (torch.bfloat16,) * 2]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK"])
def test_pictures_of_any_mode_are_rgb(folder: Path, mode: str) -> None:
    assert deviation(f"pipelines/{CLASSES[0]}/image;mode={mode}")
    theirs, ours = pair(CLASSES[0], folder)
    picture = photo(32, 32).convert(mode)
    options = {"prompt": "a red ball", "num_inference_steps": 2, "output_type": "pt"}
    made = ours(image=picture, generator=seeded(), **options).images
    assert torch.equal(made, ours(image=picture.convert("RGB"), generator=seeded(), **options).images)
    try:
        other = theirs(image=picture, generator=seeded(), **options).images
    except (RuntimeError, ValueError):
        return
    assert other.shape != made.shape or (other - made).abs().max() > 1e-3
