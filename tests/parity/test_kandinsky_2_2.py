"""Kandinsky 2.2's decoders against the reference: the same folders, embeddings and generators, the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.deviations import deviation
from tests.parity.kandinsky_parts import EMBED, decoder_2_2, mask, noise, photo, shape, two
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded

TEXT = "KandinskyV22Pipeline"
IMAGE = "KandinskyV22Img2ImgPipeline"
INPAINT = "KandinskyV22InpaintPipeline"
HINT = "KandinskyV22ControlnetPipeline"
HINT_IMAGE = "KandinskyV22ControlnetImg2ImgPipeline"

UNETS: dict[str, dict[str, Any]] = {
    TEXT: {},
    IMAGE: {},
    INPAINT: {"in_channels": 9},
    HINT: {"in_channels": 8, "addition_embed_type": "image_hint"},
    HINT_IMAGE: {"in_channels": 8, "addition_embed_type": "image_hint"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint for each class, saved by the reference."""
    made = {}
    for name, unet in UNETS.items():
        made[name] = tmp_path_factory.mktemp(name)
        getattr(diffusers, name)(**decoder_2_2(**unet)).save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """The reference's pipelines and ours, of all classes."""
    made: dict[str, tuple[Any, Any]] = {}
    for name, folder in folders.items():
        theirs, ours = (quiet(getattr(lib, name).from_pretrained(folder)) for lib in (diffusers, calotype))
        made[name] = theirs, ours
    return made


def pair(name: str, loaded: dict[str, tuple[Any, Any]], scheduler: str | None = None) -> tuple[Any, Any]:
    """Both pipelines as functions, with their own scheduler or with another that reads no variance."""
    calls = []
    for library, pipe in zip((diffusers, calotype), loaded[name], strict=True):
        if scheduler is not None:
            config = {k: v for k, v in pipe.scheduler.config.items() if k != "variance_type"}
            pipe = type(pipe)(pipe.unet, getattr(library, scheduler).from_config(config), pipe.movq)
            quiet(pipe)
        calls.append(lambda prompt, pipe=pipe, **arguments: pipe(**arguments))
    return calls[0], calls[1]


def call(name: str, make: Case) -> Case:
    usual: dict[str, Any] = {
        "image_embeds": noise(1, EMBED),
        "negative_image_embeds": noise(1, EMBED, seed=6),
        "height": 64,
        "width": 64,
    }
    if name in (IMAGE, HINT_IMAGE, INPAINT):
        usual["image"] = photo()
    if name == INPAINT:
        usual["mask_image"] = mask()
    if name in (IMAGE, HINT_IMAGE):
        usual |= {"num_inference_steps": 6, "strength": 0.5}
    if name in (HINT, HINT_IMAGE):
        usual["hint"] = noise(1, 3, 64, 64, seed=7)
    return lambda: {**usual, **make()}


def slowed(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor * 0.9 for name, tensor in tensors.items()}


EARLIER: list[tuple[int, float]] = []


def earlier_callback(step: int, timestep: Any, latents: torch.Tensor) -> None:
    EARLIER.append((step, float(latents.double().std())))


COMMON: dict[str, Case] = {
    "plain": dict,
    "no guidance": lambda: {"guidance_scale": 1.0},
    "strong guidance": lambda: {"guidance_scale": 12.0},
    "pictures of one": lambda: {"num_images_per_prompt": 2},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "lists": lambda: {
        "image_embeds": [noise(1, EMBED)],
        "negative_image_embeds": [noise(1, EMBED, seed=6)],
    },
    "pil output": lambda: {"output_type": "pil"},
    "tuple": lambda: {"return_dict": False},
    "earlier callback": lambda: {"callback": earlier_callback, "callback_steps": 2},
}
PICTURES: dict[str, Case] = {
    "batch": lambda: {**two(), "image": [photo(), photo(seed=1)]},
    "of another size": lambda: {"image": photo(80, 50)},
}
CALLS: dict[str, dict[str, Case]] = {
    TEXT: {
        "batch": two,
        "batch of pictures of one": lambda: {**two(), "num_images_per_prompt": 2},
        "rounded up": lambda: {"height": 70, "width": 30},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
        "latent output": lambda: {"output_type": "latent"},
        "callback": lambda: {
            "callback_on_step_end": slowed,
            "callback_on_step_end_tensor_inputs": ["latents", "image_embeds", "negative_image_embeds"],
        },
    },
    IMAGE: {
        **PICTURES,
        "batch of pictures of one": lambda: {
            **two(),
            "image": [photo(), photo(seed=1)],
            "num_images_per_prompt": 2,
        },
        "weak": lambda: {"strength": 0.2},
        "full": lambda: {"strength": 1.0},
        "tensor": lambda: {"image": torch.rand(1, 3, 64, 64, generator=seeded(8))},
        "latent output": lambda: {"output_type": "latent"},
        "callback": lambda: {
            "callback_on_step_end": slowed,
            "callback_on_step_end_tensor_inputs": ["latents", "image_embeds"],
        },
    },
    INPAINT: {
        "of another size": PICTURES["of another size"],
        "wide": lambda: {"height": 64, "width": 128},
        "array": lambda: {
            "image": np.asarray(photo()),
            "mask_image": np.asarray(mask()).astype(np.float32) / 255,
        },
        "tensors": lambda: {
            "image": torch.rand(1, 3, 64, 64, generator=seeded(8)) * 2 - 1,
            "mask_image": (torch.rand(1, 1, 64, 64, generator=seeded(9)) > 0.8).float(),
        },
        "grey mask": lambda: {"mask_image": photo(seed=4).convert("L")},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
        "latent output": lambda: {"output_type": "latent"},
        "callback": lambda: {
            "callback_on_step_end": slowed,
            "callback_on_step_end_tensor_inputs": ["latents", "image_embeds", "masked_image"],
        },
    },
    HINT: {
        "batch": lambda: {**two(), "hint": noise(2, 3, 64, 64, seed=7)},
        "wide": lambda: {"height": 64, "width": 128, "hint": noise(1, 3, 64, 128, seed=7)},
    },
    HINT_IMAGE: {
        "batch": lambda: {
            **two(),
            "image": [photo(), photo(seed=1)],
            "hint": noise(2, 3, 64, 64, seed=7),
        },
        "tensor output": lambda: {"output_type": "pt"},
    },
}
PACKED = {name: packed({**COMMON, **own}) for name, own in CALLS.items()}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, own in PACKED.items() for case in own])
def test_call(loaded: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    EARLIER.clear()
    compare(*pair(name, loaded), call(name, PACKED[name][case]))
    half = len(EARLIER) // 2
    assert half or case != "earlier callback"
    np.testing.assert_allclose(EARLIER[half:], EARLIER[:half], rtol=1e-4)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("name", UNETS)
def test_a_scheduler_that_reads_no_variance(
    loaded: dict[str, tuple[Any, Any]], name: str, scheduler: str
) -> None:
    compare(*pair(name, loaded, scheduler), call(name, lambda: {"num_inference_steps": 4}))


def test_what_clips_in_one_scheduler_is_nothing_to_one_that_does_not_clip(folders: dict[str, Path]) -> None:
    """Kandinsky's configuration clips; DPMSolver, made from it, does not."""
    steps = []
    for library in (diffusers, calotype):
        config = library.DDPMScheduler.from_pretrained(folders[TEXT], subfolder="scheduler").config
        assert config.clip_sample
        plain = {k: v for k, v in config.items() if k != "variance_type"}
        scheduler = library.DPMSolverMultistepScheduler.from_config(plain)
        scheduler.set_timesteps(4)
        sample = noise(1, 4, 4, 4)
        steps.append(
            scheduler.step(noise(1, 4, 4, 4, seed=6), scheduler.timesteps[0], sample, return_dict=False)[0]
        )
    torch.testing.assert_close(steps[1], steps[0], atol=1e-5, rtol=1e-5)


DEVIATING: dict[str, tuple[str, str | None, Case]] = {
    f"pipelines/{TEXT}/output_type=pt": (TEXT, None, lambda: {"output_type": "pt"}),
    f"pipelines/{INPAINT}/output_type=pt": (INPAINT, None, lambda: {"output_type": "pt"}),
    f"pipelines/{HINT}/output_type=pt": (HINT, None, lambda: {"output_type": "pt"}),
    f"pipelines/{TEXT}/scheduler=Euler": (TEXT, "EulerDiscreteScheduler", dict),
    f"pipelines/{IMAGE}/one picture for two embeddings": (IMAGE, None, two),
    f"pipelines/{INPAINT}/several pictures": (
        INPAINT,
        None,
        lambda: {**two(), "image": [photo(), photo(seed=1)], "mask_image": [mask(), mask(left=40)]},
    ),
}


@pytest.mark.parametrize("case", DEVIATING)
def test_deviations(loaded: dict[str, tuple[Any, Any]], case: str) -> None:
    assert deviation(case)
    name, scheduler, make = DEVIATING[case]
    with pytest.raises(AssertionError):
        compare(*pair(name, loaded, scheduler), call(name, make))


def test_a_picture_that_is_not_square_has_the_size_that_is_asked_for(
    loaded: dict[str, tuple[Any, Any]],
) -> None:
    assert deviation(f"pipelines/{IMAGE}/not square")
    arguments = {"prompt": "", "width": 128, "output_type": "np"}
    sizes = [pipe(**call(IMAGE, lambda: arguments)()).images.shape for pipe in pair(IMAGE, loaded)]
    assert sizes == [(1, 128, 64, 3), (1, 64, 128, 3)]


def test_each_of_several_pictures_is_kept_around_its_own_mask(loaded: dict[str, tuple[Any, Any]]) -> None:
    theirs, ours = pair(INPAINT, loaded)
    pictures, masks = [photo(), photo(seed=1)], [mask(), mask(left=40)]
    few = {"prompt": "", "num_inference_steps": 3, "output_type": "np"}
    both = {**two(), "image": pictures, "mask_image": masks, "generator": [seeded(3), seeded(4)]}
    made = ours(**call(INPAINT, lambda: {**both, **few})()).images
    for index in range(2):
        one = {
            "image": pictures[index],
            "mask_image": masks[index],
            "image_embeds": both["image_embeds"][index : index + 1],
            "negative_image_embeds": both["negative_image_embeds"][index : index + 1],
            "generator": seeded(3 + index),
        }
        alone = theirs(**call(INPAINT, lambda one=one: {**one, **few})()).images
        np.testing.assert_allclose(made[index : index + 1], alone, atol=1e-4)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no embeddings": (TEXT, {"image_embeds": None}, "image_embeds is not given"),
    "nothing to steer away from": (TEXT, {"negative_image_embeds": None}, "negative_image_embeds is needed"),
    "other negatives": (TEXT, {"negative_image_embeds": noise(2, EMBED)}, "they must be equal"),
    "an embedding of one dimension": (TEXT, {"image_embeds": noise(EMBED)}, "must be a tensor .batch, ch"),
    "no picture": (IMAGE, {"image": None}, "image is not given"),
    "no mask": (INPAINT, {"mask_image": None}, "mask_image is not given"),
    "a picture beyond its range": (INPAINT, {"image": noise(1, 3, 64, 64) * 9}, "values in .-1, 1."),
    "masks do not match": (INPAINT, {"mask_image": [mask()] * 3}, "3 masks for 1 pictures"),
    "a small picture as a tensor": (INPAINT, {"image": noise(1, 3, 32, 32).clamp(-1, 1)}, "in the size that"),
    "no hint": (HINT, {"hint": None}, "hint is not given"),
    "hints do not match": (HINT, {"hint": noise(3, 3, 64, 64)}, "one for each of the 1 embeddings"),
    "pictures do not match": (IMAGE, {"image": [photo(), photo()]}, "2 pictures to start from for 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(loaded: dict[str, tuple[Any, Any]], case: str) -> None:
    name, arguments, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        loaded[name][1](**{**call(name, dict)(), "num_inference_steps": 4, **arguments})


def test_a_unet_of_another_kind_is_refused(folders: dict[str, Path]) -> None:
    plain, hinted = (calotype.DiffusionPipeline.from_pretrained(folders[name]) for name in (TEXT, HINT))
    plain.unet, hinted.unet = hinted.unet, plain.unet
    with pytest.raises(InputError, match="with ControlNet"):
        plain(**call(TEXT, dict)())
    with pytest.raises(InputError, match="without ControlNet"):
        hinted(**call(HINT, dict)())


@pytest.mark.parametrize("name", UNETS)
def test_what_we_save_the_reference_loads(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    calotype.DiffusionPipeline.from_pretrained(folders[name]).save_pretrained(tmp_path)
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is getattr(diffusers, name)
    assert type(calotype.DiffusionPipeline.from_pretrained(tmp_path)) is getattr(calotype, name)


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", UNETS)
def test_signature(name: str, method: str) -> None:
    assert shape(calotype, name, method) == shape(diffusers, name, method)
