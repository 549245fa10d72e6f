"""Kandinsky 2.1's decoders against the reference: the same folders, texts and embeddings, the same pictures."""

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
from tests.parity.kandinsky_parts import EMBED, decoder_2_1, mask, noise, photo, shape, two
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded

TEXT, IMAGE, INPAINT = "KandinskyPipeline", "KandinskyImg2ImgPipeline", "KandinskyInpaintPipeline"
NAMES = (TEXT, IMAGE, INPAINT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint for each class, saved by the reference."""
    made = {}
    for name in NAMES:
        made[name] = tmp_path_factory.mktemp(name)
        unet = {"in_channels": 9} if name == INPAINT else {}
        getattr(diffusers, name)(**decoder_2_1(**unet)).save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """The reference's pipelines and ours."""
    made: dict[str, tuple[Any, Any]] = {}
    for name, folder in folders.items():
        theirs = quiet(getattr(diffusers, name).from_pretrained(folder))
        made[name] = theirs, quiet(calotype.DiffusionPipeline.from_pretrained(folder))
    return made


def call(name: str, make: Case) -> Case:
    usual: dict[str, Any] = {
        "image_embeds": noise(1, EMBED),
        "negative_image_embeds": noise(1, EMBED, seed=6),
        "height": 64,
        "width": 64,
    }
    if name != TEXT:
        usual["image"] = photo()
    if name == INPAINT:
        usual["mask_image"] = mask()
    if name == IMAGE:
        usual |= {"num_inference_steps": 6, "strength": 0.5}
    return lambda: {**usual, **make()}


PROMPTS = {"prompt": ["a red ball", "cube"], "negative_prompt": ["a cube", "red"]}
EARLIER: list[tuple[int, float]] = []


def earlier_callback(step: int, timestep: Any, latents: torch.Tensor) -> None:
    EARLIER.append((step, float(latents.double().std())))


COMMON: dict[str, Case] = {
    "plain": dict,
    "negative": lambda: {"negative_prompt": "a cube"},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "strong guidance": lambda: {"guidance_scale": 9.0},
    "pictures of one": lambda: {"num_images_per_prompt": 2},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "long": lambda: {"prompt": "a red ball and a cube " * 9},
    "pil output": lambda: {"output_type": "pil"},
    "tuple": lambda: {"return_dict": False},
    "earlier callback": lambda: {"callback": earlier_callback, "callback_steps": 2},
}
CALLS: dict[str, dict[str, Case]] = {
    TEXT: {
        "batch": lambda: {**two(), **PROMPTS, "num_images_per_prompt": 2},
        "rounded up": lambda: {"height": 70, "width": 30},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
    },
    IMAGE: {
        "batch": lambda: {**two(), **PROMPTS, "image": [photo(), photo(seed=1)], "num_images_per_prompt": 2},
        "of another size": lambda: {"image": photo(80, 50)},
        "weak": lambda: {"strength": 0.2},
        "full": lambda: {"strength": 1.0},
        "tensor": lambda: {"image": torch.rand(1, 3, 64, 64, generator=seeded(8))},
        "tensor output": lambda: {"output_type": "pt"},
    },
    INPAINT: {
        "batch": lambda: {
            **two(),
            **PROMPTS,
            "image": [photo(), photo(seed=1)],
            "mask_image": [mask(), mask(left=40)],
        },
        "wide": lambda: {"width": 128},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
    },
}


PACKED = {name: packed({**COMMON, **CALLS[name]}) for name in NAMES}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, own in PACKED.items() for case in own])
def test_call(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    EARLIER.clear()
    compare(*pairs[name], call(name, PACKED[name][case]))
    half = len(EARLIER) // 2
    assert half or case != "earlier callback"
    np.testing.assert_allclose(EARLIER[half:], EARLIER[:half], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_we_save_the_reference_loads(
    pairs: dict[str, tuple[Any, Any]], name: str, tmp_path: Path
) -> None:
    theirs, ours = pairs[name]
    assert type(ours) is getattr(calotype, name)
    ours.save_pretrained(tmp_path)
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is getattr(diffusers, name)
    compare(theirs, loaded, call(name, dict))


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str, method: str) -> None:
    assert shape(calotype, name, method) == shape(diffusers, name, method)


DEVIATING: dict[str, tuple[str, Case]] = {
    f"pipelines/{TEXT}/output_type=pt": (TEXT, lambda: {"output_type": "pt"}),
    f"pipelines/{INPAINT}/output_type=pt": (INPAINT, lambda: {"output_type": "pt"}),
    f"pipelines/{IMAGE}/strength=0.001": (IMAGE, lambda: {"num_inference_steps": 1000, "strength": 0.001}),
}


@pytest.mark.parametrize("case", DEVIATING)
def test_deviations(pairs: dict[str, tuple[Any, Any]], case: str) -> None:
    assert deviation(case)
    name, make = DEVIATING[case]
    with pytest.raises(AssertionError):
        compare(*pairs[name], call(name, make))


def test_a_picture_that_is_not_square_has_the_size_that_is_asked_for(
    pairs: dict[str, tuple[Any, Any]],
) -> None:
    assert deviation(f"pipelines/{IMAGE}/not square")
    theirs, ours = pairs[IMAGE]
    arguments = call(IMAGE, lambda: {"prompt": "a ball", "width": 128, "output_type": "np"})()
    with pytest.raises(ValueError, match="Unexpected latents shape"):
        theirs(**arguments)
    assert ours(**arguments).images.shape == (1, 64, 128, 3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompt": (TEXT, {"prompt": None}, "prompt is not given"),
    "no embeddings": (TEXT, {"image_embeds": None}, "image_embeds is not given"),
    "embeddings do not match": (TEXT, {"prompt": ["a", "b"]}, "1 image_embeds for 2 prompts"),
    "nothing to steer away from": (TEXT, {"negative_image_embeds": None}, "negative_image_embeds is needed"),
    "no picture": (IMAGE, {"image": None}, "image is not given"),
    "no mask": (INPAINT, {"mask_image": None}, "mask_image is not given"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(pairs: dict[str, tuple[Any, Any]], case: str) -> None:
    name, arguments, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        pairs[name][1](**{**call(name, dict)(), "prompt": "a ball", "num_inference_steps": 4, **arguments})
