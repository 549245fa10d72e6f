"""Kandinsky's priors against the reference: the same folders, texts and generators, the same embeddings."""

from __future__ import annotations

from collections.abc import Callable
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
from tests.parity.kandinsky_parts import EMBED, noise, prior, shape
from tests.parity.pipeline_runs import quiet, seeded

FIRST = "KandinskyPriorPipeline"
TEXT = "KandinskyV22PriorPipeline"
IMAGE = "KandinskyV22PriorEmb2EmbPipeline"
NAMES = (FIRST, TEXT, IMAGE)

Case = Callable[[], dict[str, Any]]


def photo(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random prior, saved by the reference; its classes have the same components."""
    path = tmp_path_factory.mktemp("prior")
    parts = prior(path / "parts")
    with torch.no_grad():
        for name in ("clip_mean", "clip_std"):
            getattr(parts["prior"], name).copy_(noise(1, EMBED, seed=len(name)))
    diffusers.KandinskyV22PriorPipeline(**parts).save_pretrained(path / "checkpoint")
    return path / "checkpoint"


@pytest.fixture(scope="module")
def pairs(folder: Path) -> dict[str, tuple[Any, Any]]:
    return {
        name: tuple(
            quiet(getattr(library, name).from_pretrained(folder)) for library in (diffusers, calotype)
        )
        for name in NAMES
    }  # type: ignore[misc]


def compare(theirs: Any, ours: Any, make: Case, **usual: Any) -> None:
    results = []
    for call in (theirs, ours):
        arguments = {"num_inference_steps": 5, **usual, **make()}
        arguments.setdefault("generator", seeded())
        results.append(call(**arguments))
    expected, found = (
        tuple(r) if isinstance(r, tuple) else (r.image_embeds, r.negative_image_embeds) for r in results
    )
    assert type(results[0]).__name__ == type(results[1]).__name__
    for wanted, got in zip(expected, found, strict=True):
        assert type(wanted) is type(got)
        wanted, got = torch.as_tensor(wanted), torch.as_tensor(got)
        assert wanted.std() > 0.01
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def slowed(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor if tensor.dtype is torch.bool else tensor * 0.9 for name, tensor in tensors.items()}


COMMON: dict[str, Case] = {
    "plain": dict,
    "negative": lambda: {"negative_prompt": "blue cube"},
    "batch": lambda: {"prompt": ["a red ball", "a big blue cube on sand"]},
    "batch with negatives": lambda: {"prompt": ["a ball", "a cube"], "negative_prompt": ["night", "day"]},
    "pictures a prompt": lambda: {"num_images_per_prompt": 3},
    "negative pictures a prompt": lambda: {"num_images_per_prompt": 2, "negative_prompt": "night"},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "no guidance with a negative": lambda: {"guidance_scale": 1.0, "negative_prompt": "night"},
    "array": lambda: {"output_type": "np"},
    "tuple": lambda: {"return_dict": False},
    "long": lambda: {"prompt": "a red ball and a blue cube on the green grass at night"},
}
LATENTS: dict[str, Case] = {
    "latents": lambda: {"latents": noise(1, EMBED)},
    "one step": lambda: {"num_inference_steps": 2},
}
CALLS: dict[str, dict[str, Case]] = {
    FIRST: LATENTS,
    TEXT: {
        **LATENTS,
        "callback": lambda: {
            "callback_on_step_end": slowed,
            "callback_on_step_end_tensor_inputs": [
                "latents",
                "prompt_embeds",
                "text_encoder_hidden_states",
                "text_mask",
            ],
        },
    },
    IMAGE: {
        "weak": lambda: {"strength": 0.3, "num_inference_steps": 10},
        "pictures": lambda: {"prompt": ["a ball", "a cube"], "image": [photo(), photo(1)]},
        "pictures with negatives": lambda: {
            "prompt": ["a ball", "a cube"],
            "negative_prompt": ["night", "day"],
            "image": [photo(), photo(1)],
            "num_images_per_prompt": 2,
        },
        "pixel values": lambda: {"image": noise(1, 3, 32, 32)},
        "a list of pixel values": lambda: {"image": [noise(1, 3, 32, 32)]},
        "embeddings": lambda: {"image": noise(1, EMBED)},
    },
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in NAMES for case in {**COMMON, **CALLS[name]}]
)
def test_call(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    usual = {"image": photo(), "strength": 0.7} if name == IMAGE else {}
    compare(*pairs[name], {**COMMON, **CALLS[name]}[case], prompt="a red ball", **usual)


BETWEEN: dict[str, Case] = {
    "text and picture": dict,
    "texts": lambda: {"images_and_prompts": ["a ball", "a cube"], "weights": [0.3, 0.7]},
    "three": lambda: {"images_and_prompts": ["a ball", photo(), photo(1)], "weights": [0.3, 0.3, 0.4]},
    "pixel values": lambda: {"images_and_prompts": [noise(1, 3, 32, 32), "a cube"]},
    "negative": lambda: {"negative_prompt": "night"},
    "negative of the prior": lambda: {"negative_prior_prompt": "night"},
    "both negatives": lambda: {"negative_prompt": "day", "negative_prior_prompt": "night"},
    "latents": lambda: {"latents": noise(1, EMBED)},
}
SEVERAL: dict[str, Case] = {"pictures of each": lambda: {"num_images_per_prompt": 2}}


@pytest.mark.parametrize(
    ("name", "case"), [(FIRST, case) for case in BETWEEN] + [(TEXT, case) for case in {**BETWEEN, **SEVERAL}]
)
def test_interpolate(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    theirs, ours = (pipe.interpolate for pipe in pairs[name])
    usual = {"images_and_prompts": ["a red ball", photo()], "weights": [0.4, 0.6]}
    compare(theirs, ours, {**BETWEEN, **SEVERAL}[case], **usual)


def test_interpolation_where_the_reference_fails_or_adds_too_much(pairs: dict[str, tuple[Any, Any]]) -> None:
    assert deviation(f"pipelines/{IMAGE}/interpolate")
    assert deviation(f"pipelines/{FIRST}/interpolate/num_images_per_prompt=2")
    between = {"images_and_prompts": ["a red ball", photo()], "weights": [0.4, 0.6]}
    with pytest.raises(TypeError):
        pairs[IMAGE][0].interpolate(**between)
    expected = pairs[TEXT][0].interpolate(**between, generator=seeded(), num_images_per_prompt=2)
    for name in (IMAGE, FIRST):
        found = pairs[name][1].interpolate(**between, generator=seeded(), num_images_per_prompt=2)
        torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=1e-4, rtol=1e-4)
    one = pairs[FIRST][0].interpolate(**between, generator=seeded(), num_images_per_prompt=2)
    assert one.image_embeds.shape == (1, EMBED)


def test_the_embedding_of_nothing(pairs: dict[str, tuple[Any, Any]]) -> None:
    for theirs, ours in pairs.values():
        torch.testing.assert_close(ours.get_zero_embed(3), theirs.get_zero_embed(3), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_we_save_the_reference_loads(
    pairs: dict[str, tuple[Any, Any]], name: str, tmp_path: Path
) -> None:
    theirs, ours = pairs[name]
    ours.save_pretrained(tmp_path)
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is getattr(diffusers, name)
    usual = {"image": photo(), "strength": 0.7} if name == IMAGE else {}
    compare(theirs, loaded, dict, prompt="a red ball", **usual)


@pytest.mark.parametrize("method", ["__init__", "__call__", "interpolate", "get_zero_embed"])
@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str, method: str) -> None:
    assert shape(calotype, name, method) == shape(diffusers, name, method)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompt": (TEXT, {"prompt": None}, "prompt is not given"),
    "no picture": (IMAGE, {"image": None}, "image is not given"),
    "pictures as output": (TEXT, {"output_type": "pil"}, "output_type is 'pt' or 'np', not 'pil'"),
    "an array": (IMAGE, {"image": np.zeros((8, 8, 3))}, "not an array"),
    "a tensor of three dimensions": (IMAGE, {"image": noise(3, 8, 8)}, "pixel values .batch, 3"),
    "negatives do not match": (TEXT, {"negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
    "pictures do not match": (IMAGE, {"prompt": ["a", "b", "c"], "image": noise(2, EMBED)}, "2 pictures to"),
    "latents of another width": (TEXT, {"latents": noise(1, 3)}, "latents has the shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(pairs: dict[str, tuple[Any, Any]], case: str) -> None:
    name, arguments, words = REFUSED[case]
    usual = {"image": photo(), "strength": 0.7} if name == IMAGE else {}
    with pytest.raises(InputError, match=words):
        pairs[name][1](**{"prompt": "a ball", "num_inference_steps": 3, **usual, **arguments})


def test_a_weight_is_needed_for_each(pairs: dict[str, tuple[Any, Any]]) -> None:
    with pytest.raises(InputError, match="1 weights for 2 texts and pictures"):
        pairs[TEXT][1].interpolate(["a ball", photo()], [1.0])
