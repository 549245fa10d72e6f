"""Kandinsky's combined pipelines against the reference, from one folder or from two that a model card joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.core.errors import InputError, ModelFilesError
from tests.parity.deviations import deviation
from tests.parity.kandinsky_parts import EMBED, decoder_2_1, decoder_2_2, mask, noise, photo, prior, shape
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded

FIRST, FIRST_IMAGE = "KandinskyCombinedPipeline", "KandinskyImg2ImgCombinedPipeline"
FIRST_INPAINT = "KandinskyInpaintCombinedPipeline"
TEXT, IMAGE = "KandinskyV22CombinedPipeline", "KandinskyV22Img2ImgCombinedPipeline"
INPAINT = "KandinskyV22InpaintCombinedPipeline"
NAMES = (FIRST, FIRST_IMAGE, FIRST_INPAINT, TEXT, IMAGE, INPAINT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Decoders, saved by the reference, whose cards name a prior that lies beside them."""
    base = tmp_path_factory.mktemp("kandinsky")
    diffusers.KandinskyV22PriorPipeline(**prior(base / "parts")).save_pretrained(base / "prior")
    diffusers.KandinskyPriorPipeline(**prior(base / "parts")).save_pretrained(base / "prior-2-1")
    made = {}
    for name in NAMES:
        second = "V22" in name
        unet = {"in_channels": 9} if "Inpaint" in name else {}
        parts = decoder_2_2(**unet) if second else decoder_2_1(**unet)
        made[name] = base / name
        decoder = name.replace("Combined", "")
        getattr(diffusers, decoder)(**parts).save_pretrained(made[name])
        place = base / ("prior" if second else "prior-2-1")
        (made[name] / "README.md").write_text(f"---\nlicense: mit\nprior:\n- {place}\n---\nA decoder.\n")
    return made


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """The reference's pipelines and ours."""
    made: dict[str, tuple[Any, Any]] = {}
    for name, folder in folders.items():
        theirs, ours = (quiet(getattr(lib, name).from_pretrained(folder)) for lib in (diffusers, calotype))
        theirs.set_progress_bar_config(disable=True)
        made[name] = theirs, ours
    return made


def call(name: str, make: Case) -> Case:
    usual: dict[str, Any] = {
        "prompt": "a red ball",
        "height": 64,
        "width": 64,
        "prior_num_inference_steps": 3,
    }
    if name not in (FIRST, TEXT):
        usual["image"] = photo()
    if name in (FIRST_INPAINT, INPAINT):
        usual["mask_image"] = mask()
    if name in (FIRST_IMAGE, IMAGE):
        usual |= {"num_inference_steps": 6, "strength": 0.5}
    return lambda: {**usual, **make()}


def slowed(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor * 0.9 for name, tensor in tensors.items()}


EARLIER: list[tuple[int, float]] = []


def earlier_callback(step: int, timestep: Any, latents: torch.Tensor) -> None:
    EARLIER.append((step, float(latents.double().std())))


COMMON: dict[str, Case] = {
    "plain": dict,
    "negative": lambda: {"negative_prompt": "a cube"},
    "pictures of one": lambda: {"num_images_per_prompt": 2},
    "unguided prior": lambda: {"prior_guidance_scale": 1.0},
    "unguided decoder": lambda: {"guidance_scale": 1.0},
    "latents of the prior": lambda: {"latents": noise(1, EMBED)},
    "tuple": lambda: {"return_dict": False},
    "pil output": lambda: {"output_type": "pil"},
}
BATCH: Case = lambda: {"prompt": ["a red ball", "cube"], "negative_prompt": ["cube", "red"]}  # noqa: E731
CALLBACKS: Case = lambda: {  # noqa: E731
    "callback_on_step_end": slowed,
    "callback_on_step_end_tensor_inputs": ["latents", "image_embeds"],
    "prior_callback_on_step_end": slowed,
    "prior_callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
}
CALLS: dict[str, dict[str, Case]] = {
    FIRST: {"batch": BATCH, "earlier callback": lambda: {"callback": earlier_callback}},
    TEXT: {"batch": BATCH, "callbacks": CALLBACKS},
    # alone, the picture would not be repeated in the reference, which then fails
    FIRST_IMAGE: {"pictures of one": lambda: {"num_images_per_prompt": 2, "image": [photo()]}},
    IMAGE: {"callbacks": CALLBACKS, "of several": lambda: {**BATCH(), "image": [photo(), photo(seed=1)]}},
    INPAINT: {"callbacks": CALLBACKS},
}
PACKED = {name: packed({**COMMON, **CALLS.get(name, {})}) for name in NAMES}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, own in PACKED.items() for case in own])
def test_call(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    EARLIER.clear()
    compare(*pairs[name], call(name, PACKED[name][case]))
    half = len(EARLIER) // 2
    assert half or case != "earlier callback"
    np.testing.assert_allclose(EARLIER[half:], EARLIER[:half], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_one_folder_holds_both(pairs: dict[str, tuple[Any, Any]], name: str, tmp_path: Path) -> None:
    theirs, ours = pairs[name]
    ours.save_pretrained(tmp_path)
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is getattr(diffusers, name)
    again = quiet(calotype.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(again) is getattr(calotype, name)
    compare(theirs, again, call(name, dict))


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str, method: str) -> None:
    assert shape(calotype, name, method) == shape(diffusers, name, method)


AUTO = {
    "AutoPipelineForText2Image": (FIRST, TEXT),
    "AutoPipelineForImage2Image": (FIRST_IMAGE, IMAGE),
    "AutoPipelineForInpainting": (FIRST_INPAINT, INPAINT),
}


@pytest.mark.parametrize(("auto", "name"), [(auto, name) for auto, names in AUTO.items() for name in names])
def test_auto_pipelines_choose_them(folders: dict[str, Path], auto: str, name: str) -> None:
    theirs, ours = (
        quiet(getattr(library, auto).from_pretrained(folders[name])) for library in (diffusers, calotype)
    )
    assert type(theirs).__name__ == type(ours).__name__ == name
    compare(theirs, ours, call(name, dict))


def test_auto_pipelines_change_the_task(pairs: dict[str, tuple[Any, Any]]) -> None:
    text = pairs[TEXT][1]
    image = quiet(calotype.AutoPipelineForImage2Image.from_pipe(text))
    assert type(image).__name__ == IMAGE
    assert image.prior_prior is text.prior_prior
    assert type(calotype.AutoPipelineForText2Image.from_pipe(image)).__name__ == TEXT


def test_a_decoder_with_its_prior(folders: dict[str, Path]) -> None:
    """``load_connected_pipeline`` is how the reference's loader is asked for both."""
    decoder = calotype.DiffusionPipeline.from_pretrained(folders[TEXT])
    assert type(decoder) is calotype.KandinskyV22Pipeline
    both = calotype.DiffusionPipeline.from_pretrained(folders[TEXT], load_connected_pipeline=True)
    assert type(both) is calotype.KandinskyV22CombinedPipeline


def test_parts_of_the_prior_may_be_given(folders: dict[str, Path], pairs: dict[str, tuple[Any, Any]]) -> None:
    given = pairs[TEXT][1].prior_prior
    pipe = calotype.KandinskyV22CombinedPipeline.from_pretrained(folders[TEXT], prior_prior=given)
    assert pipe.prior_prior is given


CARDS = {
    "no card": (None, "name no checkpoint under `prior:`"),
    "a card without metadata": ("A decoder.\n", "name no checkpoint under `prior:`"),
    "a card that names none": ("---\nlicense: mit\n---\n", "name no checkpoint under `prior:`"),
    "damaged metadata": ("---\nprior: [\n---\n", "are damaged"),
    "another decoder": ("---\nprior: ../{decoder}\n---\n", "is a KandinskyV22Pipeline and has no 'prior'"),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_card_that_does_not_help_is_named(folders: dict[str, Path], case: str, tmp_path: Path) -> None:
    card, words = CARDS[case]
    folder = tmp_path / "decoder"
    calotype.DiffusionPipeline.from_pretrained(folders[TEXT]).save_pretrained(folder)
    (tmp_path / "other").symlink_to(folders[TEXT])
    if card is not None:
        (folder / "README.md").write_text(card.replace("{decoder}", "other"))
    with pytest.raises(ModelFilesError, match=words):
        calotype.KandinskyV22CombinedPipeline.from_pretrained(folder)


def test_a_folder_beside_the_card(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    calotype.DiffusionPipeline.from_pretrained(folders[TEXT]).save_pretrained(folder)
    (tmp_path / "prior").symlink_to(folders[TEXT].parent / "prior")
    (folder / "README.md").write_text("---\nprior: ../prior\n---\n")
    pipe = calotype.AutoPipelineForText2Image.from_pretrained(folder)
    assert type(pipe) is calotype.KandinskyV22CombinedPipeline


def test_texts_stay_with_their_embeddings(pairs: dict[str, tuple[Any, Any]]) -> None:
    """With several prompts and several pictures of each, the reference tells decoders the prompts in turn."""
    assert deviation(f"pipelines/{FIRST}/several pictures of several prompts")
    theirs, ours = pairs[FIRST]
    texts = ["a red ball", "cube"]
    many = call(FIRST, lambda: {"prompt": texts, "num_images_per_prompt": 2, "num_inference_steps": 2})
    with pytest.raises(AssertionError):
        compare(theirs, ours, many)
    generator = seeded()
    first = quiet(calotype.KandinskyPriorPipeline(**prior_of(ours)))(
        texts, num_images_per_prompt=2, num_inference_steps=3, generator=generator
    )
    decoder = quiet(calotype.KandinskyPipeline.from_pipe(ours))
    expected = decoder(
        [text for text in texts for _ in range(2)],
        first.image_embeds,
        first.negative_image_embeds,
        height=64,
        width=64,
        num_inference_steps=2,
        generator=generator,
        output_type="np",
    )
    found = ours(**many(), generator=seeded(), output_type="np")
    np.testing.assert_allclose(found.images, expected.images, atol=1e-4)


def prior_of(pipe: Any) -> dict[str, Any]:
    return {
        name.removeprefix("prior_"): value
        for name, value in pipe.components.items()
        if name.startswith("prior_")
    }


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompt": (TEXT, {"prompt": None}, "prompt is not given"),
    "no picture": (IMAGE, {"image": None}, "image is not given"),
    "a tensor that the prior lacks": (
        TEXT,
        {"prior_callback_on_step_end": slowed, "prior_callback_on_step_end_tensor_inputs": ["image_embeds"]},
        "names image_embeds; this pipeline offers latents, prompt_embeds",
    ),
    "latents of a picture": (TEXT, {"latents": noise(1, 4, 8, 8)}, "latents has the shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused_before_the_prior_is_sampled(
    pairs: dict[str, tuple[Any, Any]], case: str
) -> None:
    name, arguments, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        pairs[name][1](**{**call(name, dict)(), "num_inference_steps": 4, **arguments})
