"""What `calotype.load` returns for a decoder of Kandinsky: one object with its prior, and the public classes' bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from tests.parity.kandinsky_parts import decoder_2_1, decoder_2_2, kandinsky_3, mask, noise, photo, prior
from tests.parity.pipeline_runs import quiet, seeded

HINTED = {"in_channels": 8, "addition_embed_type": "image_hint"}
DECODERS: dict[str, dict[str, Any]] = {
    "KandinskyPipeline": {},
    "KandinskyInpaintPipeline": {"in_channels": 9},
    "KandinskyV22Pipeline": {},
    "KandinskyV22InpaintPipeline": {"in_channels": 9},
    "KandinskyV22ControlnetPipeline": HINTED,
}
TEXT, DEPTH = "KandinskyV22Pipeline", "KandinskyV22ControlnetPipeline"


def converted(parts: dict[str, Any], folder: Path, name: str) -> None:
    """Components of the reference in a folder that names this class."""
    import diffusers

    getattr(diffusers, name)(**parts).save_pretrained(folder)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.mktemp("kandinsky")
    converted(prior(base / "parts"), base / "prior-2-2", "KandinskyV22PriorPipeline")
    converted(prior(base / "parts"), base / "prior-2-1", "KandinskyPriorPipeline")
    made = {}
    for name, unet in DECODERS.items():
        second = "V22" in name
        converted(decoder_2_2(**unet) if second else decoder_2_1(**unet), base / name, name)
        (base / name / "README.md").write_text(f"---\nprior: ../prior-2-{1 + second}\n---\n")
        made[name] = quiet(calotype.load(base / name, device="cpu"))
    converted(kandinsky_3(), base / "3", "Kandinsky3Pipeline")
    made["Kandinsky3Pipeline"] = quiet(calotype.load(base / "3", device="cpu"))
    return made


def usual(name: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt": "a red ball", "height": 64, "width": 64, "output_type": "pt"}
    if "seed" not in more:
        found["generator"] = seeded()
    if "Kandinsky3" not in name:
        found["prior_num_inference_steps"] = 2
    return {**found, "num_inference_steps": 4, **more}


PICTURES: dict[str, dict[str, Any]] = {
    "": {},
    "Img2Img": {"image": photo(), "strength": 0.5},
    "Inpaint": {"image": photo(), "mask_image": mask()},
}
SAME = [
    ("KandinskyPipeline", "", "KandinskyCombinedPipeline"),
    ("KandinskyPipeline", "Img2Img", "KandinskyImg2ImgCombinedPipeline"),
    ("KandinskyInpaintPipeline", "Inpaint", "KandinskyInpaintCombinedPipeline"),
    (TEXT, "", "KandinskyV22CombinedPipeline"),
    (TEXT, "Img2Img", "KandinskyV22Img2ImgCombinedPipeline"),
    ("KandinskyV22InpaintPipeline", "Inpaint", "KandinskyV22InpaintCombinedPipeline"),
    ("Kandinsky3Pipeline", "", "Kandinsky3Pipeline"),
    ("Kandinsky3Pipeline", "Img2Img", "Kandinsky3Img2ImgPipeline"),
]


@pytest.mark.parametrize(("name", "task", "public"), SAME, ids=[f"{n}-{t or 'Text'}" for n, t, _ in SAME])
def test_the_bits_are_those_of_the_public_class(
    pipes: dict[str, Any], name: str, task: str, public: str
) -> None:
    """Its defaults included."""
    given = {**PICTURES[task], "negative_prompt": "a cube"}
    if public == "Kandinsky3Img2ImgPipeline":  # it has the picture's size
        given |= {"height": None, "width": None}
    expected = quiet(getattr(calotype, public).from_pipe(pipes[name]))
    theirs = {k: v for k, v in usual(name, **given).items() if v is not None}
    assert torch.equal(pipes[name](**usual(name, **given)).images, expected(**theirs).images)


SERVED = {
    "KandinskyPipeline": ("text-to-image", "image-to-image"),
    "KandinskyInpaintPipeline": ("inpainting",),
    TEXT: ("text-to-image", "image-to-image"),
    "KandinskyV22InpaintPipeline": ("inpainting",),
    DEPTH: ("text-to-image", "image-to-image"),
    "Kandinsky3Pipeline": ("text-to-image", "image-to-image"),
}


@pytest.mark.parametrize("name", SERVED)
def test_tasks_follow_from_the_denoiser(pipes: dict[str, Any], name: str) -> None:
    assert pipes[name].tasks == SERVED[name]


@pytest.mark.parametrize("task", ["", "Img2Img"])
def test_a_denoiser_that_reads_depth(pipes: dict[str, Any], task: str) -> None:
    """A picture for ``control`` is what the public class takes as its hint."""
    pipe, hint = pipes[DEPTH], noise(1, 3, 64, 64, seed=7).sigmoid()
    generator = seeded()
    sampling = quiet(calotype.KandinskyV22PriorPipeline(**prior_of(pipe)))
    embeddings = sampling("a red ball", num_inference_steps=2, generator=generator)
    public = quiet(getattr(calotype, f"KandinskyV22Controlnet{task}Pipeline").from_pipe(pipe))
    expected = public(
        **embeddings,
        **PICTURES[task],
        hint=hint,
        height=64,
        width=64,
        num_inference_steps=4,
        generator=generator,
        output_type="pt",
    )
    found = pipe(**usual(DEPTH, **PICTURES[task], control=hint))
    assert torch.equal(found.images, expected.images)


def prior_of(pipe: Any) -> dict[str, Any]:
    names = [name for name in pipe.components if name.startswith("prior_")]
    return {name.removeprefix("prior_"): pipe.components[name] for name in names}


def test_a_picture_of_depth(pipes: dict[str, Any]) -> None:
    """It gives the size of what is made, and may be one for each prompt."""
    depth = photo(70, 140).convert("L")
    asked = usual(DEPTH, height=None, width=None)
    made = pipes[DEPTH](**asked, control=depth).images
    assert made.shape == (1, 3, 192, 64)  # rounded up to what the autoencoder divides
    tensor = torch.from_numpy(_rgb(depth.resize((64, 192), Image.Resampling.LANCZOS)))
    torch.testing.assert_close(
        made, pipes[DEPTH](**usual(DEPTH, height=192, width=64), control=tensor).images
    )
    several = usual(DEPTH, prompt=["a red ball", "cube"], num_images_per_prompt=2, seed=3)
    both = pipes[DEPTH](**several, control=[[photo(), photo(seed=1)]]).images
    alone = pipes[DEPTH](**usual(DEPTH, prompt="cube", seed=5), control=photo(seed=1)).images
    torch.testing.assert_close(both[2], alone[0], atol=1e-4, rtol=0)


def _rgb(picture: Image.Image) -> Any:
    import numpy as np

    return np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)[None] / 255


@pytest.mark.parametrize("name", ["KandinskyPipeline", TEXT])
def test_a_picture_can_be_made_again_alone(pipes: dict[str, Any], name: str) -> None:
    """With a negative prompt, for which the prior samples an embedding of its own."""
    given = {"negative_prompt": "a cube", "prior_num_inference_steps": 3}
    three = pipes[name](**usual(name, seed=5, num_images_per_prompt=3, **given)).images
    again = pipes[name](**usual(name, seed=7, **given)).images
    torch.testing.assert_close(three[2:], again, atol=1e-4, rtol=0)
    generators = [seeded(5 + n) for n in range(3)]
    listed = pipes[name](**usual(name, generator=generators, num_images_per_prompt=3, **given)).images
    assert torch.equal(listed, three)


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "no depth": (DEPTH, {}, InputError, "reads one picture by itself.*give control=picture"),
    "depth for what reads none": (TEXT, {"control": photo()}, InputError, "1 pictures, and the pipeline 0"),
    "the public class's own word": (TEXT, {"hint": photo()}, TypeError, "hint; give control"),
    "a mask": (
        TEXT,
        {"image": photo(), "mask_image": mask()},
        InputError,
        "no task for image and mask_image",
    ),
    "two depths": (
        DEPTH,
        {"control": [photo(), photo()]},
        InputError,
        "2 pictures, and the pipeline 1 models",
    ),
    "three depths for one prompt": (
        DEPTH,
        {"control": [[photo(), photo(), photo()]]},
        InputError,
        "3 hints; give one for all or one for each of the 1 prompts",
    ),
    "a depth of another size": (
        DEPTH,
        {"control": noise(1, 3, 32, 32)},
        InputError,
        r"hint has the shape \(1, 3, 32, 32\); this call needs \(batch, 3, 64, 64\)",
    ),
    "too many generators": (
        TEXT,
        {"negative_prompt": "a cube", "generator": [seeded(), seeded()]},
        InputError,
        "2 generators for 1 pictures",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_in_words(pipes: dict[str, Any], case: str) -> None:
    name, given, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        pipes[name](**usual(name, **given))


def test_depth_has_no_strength(pipes: dict[str, Any]) -> None:
    pipe = pipes[DEPTH]
    with pytest.raises(InputError, match="at full strength and in all steps"):
        pipe(**usual(DEPTH, control=calotype.control(pipe.unet, photo(), scale=0.5)))
    whole = pipe(**usual(DEPTH, control=calotype.control(pipe.unet, photo()))).images
    assert torch.equal(whole, pipe(**usual(DEPTH, control=photo())).images)


def test_files_are_those_of_the_public_class(pipes: dict[str, Any], tmp_path: Path) -> None:
    """Both parts in one folder, which needs no model card."""
    pipes[DEPTH].save_pretrained(tmp_path)
    assert type(calotype.DiffusionPipeline.from_pretrained(tmp_path)) is calotype.KandinskyV22CombinedPipeline
    again = quiet(calotype.load(tmp_path, device="cpu"))
    assert torch.equal(*(pipe(**usual(DEPTH, control=photo())).images for pipe in (again, pipes[DEPTH])))
