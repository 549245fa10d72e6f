"""What is the same bit for bit, or within rounding: threads, the pictures of a batch, what inpainting leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from tests.parity.pipeline_runs import quiet, seeded
from tests.parity.test_editing_pipelines import PARTS
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

DEPTH, UPSCALE = "StableDiffusionDepth2ImgPipeline", "StableDiffusionUpscalePipeline"


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    folders: dict[str, Path] = {
        "plain": stable_diffusion_folder(root / "sd"),
        "xl": stable_diffusion_xl_folder(root / "xl", calotype),
        "inpainting": stable_diffusion_folder(root / "inpainting", unet={"in_channels": 9}),
        "editing": stable_diffusion_folder(root / "editing", unet={"in_channels": 8}),
    }
    for name in (DEPTH, UPSCALE):
        folders[name] = root / name
        getattr(diffusers, name)(**PARTS[name](root / f"{name}-parts")).save_pretrained(folders[name])
    return {name: quiet(calotype.load(folder, device="cpu")) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def network(pipes: dict[str, Any]) -> Any:
    unet = pipes["plain"].unet
    return randomise(
        calotype.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16)), 20
    )


def run(pipe: Any, **arguments: Any) -> torch.Tensor:
    return pipe(**{"prompt": "a red ball", "num_inference_steps": 3, "output_type": "pt", **arguments}).images


# -- the pictures of a batch -----------------------------------------------------------------------------------

TASKS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "text-to-image": ("plain", dict),
    "image-to-image": ("plain", lambda: {"image": photo()}),
    "inpainting": ("plain", lambda: {"image": photo(), "mask_image": mask(), "strength": 0.7}),
    "inpainting that reads the mask": (
        "inpainting",
        lambda: {"image": photo(), "mask_image": mask(), "strength": 0.7},
    ),
    "depth-to-image": (DEPTH, lambda: {"image": photo()}),
    "upscaling": (UPSCALE, lambda: {"image": photo(16, 16), "guidance_scale": 2.0}),
    "editing": ("editing", lambda: {"image": photo()}),
    "text-to-image with SDXL": ("xl", dict),
    "inpainting with SDXL": ("xl", lambda: {"image": photo(), "mask_image": mask(), "strength": 0.7}),
}


def alone_and_together(pipe: Any, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Three pictures of one call, and each of them made by itself."""
    together = run(pipe, num_images_per_prompt=3, seed=40, **given)
    return torch.cat([run(pipe, seed=40 + number, **given) for number in range(3)]), together


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_of_a_batch_can_be_made_again_alone(pipes: dict[str, Any], task: str) -> None:
    name, given = TASKS[task]
    alone, together = alone_and_together(pipes[name], given())
    assert (together[0] - together[1]).abs().max() > 0.01
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)


STOCHASTIC: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {},
    "DDIMScheduler": {"eta": 1.0},
    "EulerAncestralDiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "LCMScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "SASolverScheduler": {},
    "TCDScheduler": {"eta": 0.3},
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_that_a_scheduler_adds_is_the_pictures_own(pipes: dict[str, Any], name: str) -> None:
    pipe = quiet(type(pipes["plain"]).from_pipe(pipes["plain"]))
    options = dict(STOCHASTIC[name])
    given = {"eta": options.pop("eta")} if "eta" in options else {}
    pipe.scheduler = getattr(calotype, name).from_config(pipe.scheduler.config, **options)
    alone, together = alone_and_together(pipe, given)
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)


def test_a_scheduler_with_a_seed_of_its_own_takes_no_other(pipes: dict[str, Any]) -> None:
    pipe = quiet(type(pipes["plain"]).from_pipe(pipes["plain"]))
    pipe.scheduler = calotype.DPMSolverSDEScheduler.from_config(pipe.scheduler.config, noise_sampler_seed=3)
    with pytest.raises(InputError, match="DPMSolverSDEScheduler draws noise .* from its noise_sampler_seed"):
        run(pipe, seed=40)
    assert torch.equal(run(pipe, generator=seeded()), run(pipe, generator=seeded()))


def test_seeds_serve_every_pipeline(pipes: dict[str, Any]) -> None:
    public = quiet(calotype.StableDiffusionPipeline.from_pipe(pipes["plain"]))
    made = run(public, prompt=["a ball", "a cube"], generator=calotype.seeds(7))
    for number, prompt in enumerate(["a ball", "a cube"]):
        own = run(public, prompt=prompt, generator=torch.Generator().manual_seed(7 + number))
        torch.testing.assert_close(made[number], own[0], atol=1e-4, rtol=0)
    assert torch.equal(run(pipes["plain"], seed=7), run(public, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "7"])
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(InputError, match="whole number from 0"):
        calotype.seeds(seed)


def test_seeds_that_run_out() -> None:
    with pytest.raises(InputError, match="whole number from 0"):
        calotype.seeds(2**63 - 2).generators(3)


# -- threads ---------------------------------------------------------------------------------------------------


def test_eight_threads_give_the_bits_of_one(pipes: dict[str, Any], network: Any) -> None:
    """Of one object, in three tasks at once, with two schedulers' worth of steps."""
    pipe = pipes["plain"]
    prompts = ["a red ball", "a blue cube", "a green cone", "a big cube", "sand", "grass", "night", "day"]

    def make(number: int) -> torch.Tensor:
        given: dict[str, Any] = {"seed": number, "num_inference_steps": 2 + number % 3}
        if number % 4 == 1:
            given |= {"image": photo(seed=number), "mask_image": mask(), "strength": 0.9}
        if number % 4 == 2:
            given |= {"control": calotype.control(network, photo(seed=number), scale=0.5)}
        if number % 4 == 3:
            given |= {
                "image": photo(seed=number),
                "guidance": calotype.guidance.Interval(calotype.guidance.ClassifierFree(4.0), end=0.5),
            }
        return run(pipe, prompt=prompts[number], **given)

    alone = [make(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(make, range(8)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("task", ["Inpaint", "ControlNet"])
def test_eight_threads_on_a_public_class(pipes: dict[str, Any], network: Any, task: str) -> None:
    options = {"controlnet": network} if task == "ControlNet" else {}
    pipe = quiet(getattr(calotype, f"StableDiffusion{task}Pipeline").from_pipe(pipes["plain"], **options))
    more = {"mask_image": mask()} if task == "Inpaint" else {}

    def make(number: int) -> torch.Tensor:
        return run(pipe, image=photo(seed=number), generator=seeded(number), **more)

    alone = [make(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(make, range(8)))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


# -- what inpainting leaves alone ------------------------------------------------------------------------------


def in_mode(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture of every mode that Pillow converts to RGB; the transparent ones are so in parts."""
    picture = photo(*size)
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(photo(*size, seed=9).convert("L"))
        return picture
    return picture.convert(mode)


def rgb(picture: Image.Image) -> np.ndarray:
    eight = (
        picture if picture.mode != "I;16" else Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    )
    return np.asarray(eight.convert("RGB"))


MODES = ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "I;16", "YCbCr")
WAYS: dict[str, dict[str, Any]] = {"composite": {"composite": True}, "cropped": {"padding_mask_crop": 5}}


def unchanged_outside(made: Image.Image, picture: Image.Image, marks: Image.Image) -> None:
    kept = np.asarray(marks) == 0
    assert made.size == picture.size
    assert made.mode == "RGB"
    assert np.array_equal(np.asarray(made)[kept], rgb(picture)[kept])
    assert (np.asarray(made)[~kept] != rgb(picture)[~kept]).any(axis=-1).mean() > 0.5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_unmasked_pixels_are_those_of_the_input(pipes: dict[str, Any], mode: str, way: str) -> None:
    picture, marks = in_mode(mode, (64, 64)), mask()
    (made,) = run(pipes["plain"], image=picture, mask_image=marks, seed=3, output_type="pil", **WAYS[way])
    unchanged_outside(made, picture, marks)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (33, 130), (200, 120)])
def test_unmasked_pixels_in_any_size(pipes: dict[str, Any], size: tuple[int, int], way: str) -> None:
    """The picture's size stays, whatever size the model works at."""
    picture, marks = photo(*size), mask(*size)
    for name in ("plain", "inpainting", "xl"):
        given = {"image": picture, "mask_image": marks, "seed": 3, "output_type": "pil", **WAYS[way]}
        (made,) = run(pipes[name], num_inference_steps=2, **given)
        unchanged_outside(made, picture, marks)


def test_a_batch_of_pictures_each_with_its_mask(pipes: dict[str, Any]) -> None:
    pictures, marks = [photo(seed=1), photo(seed=2)], [mask(), mask().transpose(Image.Transpose.ROTATE_90)]
    given = {"image": pictures, "mask_image": marks, "composite": True, "output_type": "pil"}
    made = run(pipes["plain"], prompt=["a ball", "a cube"], num_images_per_prompt=2, seed=3, **given)
    assert len(made) == 4
    for number, each in enumerate(made):
        unchanged_outside(each, pictures[number % 2], marks[number % 2])


def test_a_soft_mask_blends(pipes: dict[str, Any]) -> None:
    soft = Image.linear_gradient("L").resize((64, 64))
    given = {"image": photo(), "mask_image": soft, "seed": 3, "output_type": "pil"}
    (whole,) = run(pipes["plain"], **given)
    (made,) = run(pipes["plain"], composite=True, **given)
    share = np.asarray(soft)[..., None] / 255
    expected = share * np.asarray(whole) + (1 - share) * np.asarray(photo())
    assert np.abs(np.asarray(made) - expected).max() < 2


def test_composite_serves_the_public_classes(pipes: dict[str, Any]) -> None:
    pipe = quiet(calotype.StableDiffusionInpaintPipeline.from_pipe(pipes["plain"]))
    (made,) = run(
        pipe, image=photo(), mask_image=mask(), composite=True, generator=seeded(), output_type="pil"
    )
    unchanged_outside(made, photo(), mask())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tensors": ({"image": torch.zeros(1, 3, 64, 64)}, "composite needs image and mask_image as PIL"),
    "an array to come": ({"output_type": "np"}, "composite needs output_type='pil'"),
    "a mask of another size": (
        {"mask_image": mask(32, 32), "composite": False, "padding_mask_crop": 4},
        "as large as the picture",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pasted_is_refused(pipes: dict[str, Any], case: str) -> None:
    given, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        run(
            pipes["plain"],
            **{"image": photo(), "mask_image": mask(), "composite": True, "output_type": "pil", **given},
        )
