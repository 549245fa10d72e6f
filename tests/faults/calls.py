"""Arguments of a call that mean nothing, too much, or two things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from calotype.core.errors import InputError
from tests.faults.fault import Fault

GREY = Image.new("RGB", (64, 64), (128, 128, 128))
NAN, INFINITY = float("nan"), float("inf")


class Made:
    """The pipelines of a checkpoint, loaded once for each library and folder."""

    def __init__(self) -> None:
        self._pipes: dict[tuple[str, str, Path], Any] = {}

    def __call__(self, library: Any, kind: str, folder: Path) -> Any:
        key = (library.__name__, kind, folder)
        if key not in self._pipes:
            pipe = getattr(library, kind).from_pretrained(folder)
            pipe.set_progress_bar_config(disable=True)
            self._pipes[key] = pipe
        return self._pipes[key]


made = Made()


def call(name: str, words: str, kind: str = "StableDiffusionPipeline", **arguments: Any) -> Fault:
    """A call of a pipeline that is sound but for these arguments."""

    def act(library: Any, folder: Path) -> Any:
        pipe = made(library, kind, folder)
        usual = {"prompt": "a red ball", "num_inference_steps": 2, "output_type": "np"}
        given = {k: v() if callable(v) else v for k, v in arguments.items()}
        return pipe(**{**usual, "generator": torch.Generator().manual_seed(0), **given})

    return Fault(name, words, act=act, error=InputError)


def picture(name: str, words: str, **arguments: Any) -> Fault:
    return call(name, words, "StableDiffusionImg2ImgPipeline", **{"image": GREY, **arguments})


def mask(name: str, words: str, **arguments: Any) -> Fault:
    usual = {"image": GREY, "mask_image": Image.new("L", (64, 64), 255)}
    return call(name, words, "StableDiffusionInpaintPipeline", **{**usual, **arguments})


FAULTS = [
    call("no steps", "num_inference_steps .* at least 1, not 0", num_inference_steps=0),
    call("steps below zero", "at least 1, not -3", num_inference_steps=-3),
    call("half a step", "whole number of steps", num_inference_steps=2.5),
    call("steps without end", "limit of 10,000.*set_limits", num_inference_steps=10**9),
    call("guidance that is no number", "guidance_scale must be a finite number, not nan", guidance_scale=NAN),
    call("guidance without end", "guidance_scale must be a finite number, not inf", guidance_scale=INFINITY),
    call("a height of 61", "height must be divisible by 8 .* near it: 56 and 64", height=61),
    call("a height of 0", "height must be .* at least 1, not 0", height=0),
    call("a width of a million", "limit of 16,384.*set_limits", width=2**20),
    call(
        "pixels without end", "pixels is over the limit", height=16384, width=16384, num_images_per_prompt=4
    ),
    call("no pictures", "num_images_per_prompt must be .* at least 1, not 0", num_images_per_prompt=0),
    call("5,000 pictures", "5,000 pictures is over the limit of 1,024", num_images_per_prompt=5000),
    call("eta that is no number", "eta must be a finite number", eta=NAN),
    call("a number for a prompt", "prompt must be a text or a list of texts, not 5", prompt=5),
    call("no prompt", "Neither prompt nor prompt_embeds", prompt=None),
    call("an empty list of prompts", "prompt is an empty list", prompt=[]),
    call("half a character", r"prompt holds a lone surrogate, U\+D83D at position 6", prompt="a fox \ud83d"),
    call("half a character to avoid", "negative_prompt holds a lone surrogate", negative_prompt="\udc00"),
    call(
        "two prompts, three to avoid",
        "3 negative prompts for 2",
        prompt=["a", "b"],
        negative_prompt=["x"] * 3,
    ),
    call("prompt and embeddings", "Both prompt and prompt_embeds", prompt_embeds=torch.zeros(1, 16, 32)),
    call("three seeds for one picture", "3 generators for 1 pictures", generator=[torch.Generator()] * 3),
    call("latents of another size", "latents has the shape", latents=torch.zeros(2, 4, 8, 8)),
    call("an output that there is none of", "output_type must be one of", output_type="jpeg"),
    call("99 layers left out", "only 3 layers", clip_skip=99),
    picture("no picture", "image", image=None),
    picture("strength above 1", "strength must be between 0 and 1, not 1.5", strength=1.5),
    picture("strength below 0", "strength must be between 0 and 1, not -0.1", strength=-0.1),
    picture("strength that is no number", "strength must be a finite number, not nan", strength=NAN),
    picture("a text for a picture", "image", image="a.png"),
    picture("a picture of NaN", "The picture holds NaN", image=lambda: torch.full((1, 3, 64, 64), NAN)),
    mask("no mask", "mask_image", mask_image=None),
]
