"""What the bundled model draws is what was asked for, as read by a classifier that only ever saw rendered scenes.

The benchmark `pocket_quality` measures it over hundreds of prompts; here are few, in every task that needs no other
weights. Everything is seeded, and the bars leave room for other processors' rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import calotype
from calotype.pocket.classifier import AttributeClassifier, Reading, load_classifier, read_pictures
from calotype.pocket.judging import judge, shares
from calotype.pocket.prompts import prompts
from calotype.pocket.vocabulary import COLORS, SHAPES

CLASSIFIER = Path(__file__).parents[2] / "benchmarks" / "pocket_classifier.safetensors"
STEPS = 10


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = calotype.load("pocket", device="cpu")
    pipe.scheduler = calotype.Scheduler.named("DPM++ 2M", pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def classifier() -> AttributeClassifier:
    return load_classifier(CLASSIFIER, "cpu")


def read(classifier: AttributeClassifier, images: list[PIL.Image.Image]) -> Reading:
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return read_pictures(classifier, torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255)


def seeds(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def found(reading: Reading, picture: int) -> set[tuple[str, str]]:
    """Colour and shape of every object in a picture."""
    return {
        (COLORS[int(reading.color[picture, slot])], SHAPES[int(reading.shape[picture, slot])])
        for slot in range(int(reading.count[picture]))
    }


@pytest.fixture(scope="module")
def cube(pipe: Any) -> PIL.Image.Image:
    """The scene that is edited."""
    return pipe("a big blue cube on sand by day", num_inference_steps=STEPS, generator=seeds(1, 3)).images[0]


def test_pairs_that_were_never_seen_are_drawn_as_asked(pipe: Any, classifier: AttributeClassifier) -> None:
    asked = prompts("heldout", 7, seed=5, pairs_share=0.4)
    images = pipe([p.text for p in asked], num_inference_steps=8, generator=seeds(7)).images
    right = shares(judge(asked, read(classifier, images)))
    for name, bar in (("color", 6), ("shape", 6), ("floor", 6), ("relation", 2)):
        assert right[name][0] >= bar, f"{name}: {right}"


def test_what_the_negative_prompt_names_goes_away(pipe: Any) -> None:
    """With few steps more of the night is left for it to take away: the sky goes from 182 to 205, of 255."""
    plain, without = (
        pipe("a red ball on grass", num_inference_steps=6, generator=seeds(1), **negative).images[0]
        for negative in ({}, {"negative_prompt": "at night"})
    )
    brightness = [np.asarray(image, dtype=float)[:40].mean() for image in (plain, without)]
    assert brightness[1] > brightness[0] + 10


def test_image_to_image_keeps_the_place_and_changes_the_colour(
    pipe: Any, cube: PIL.Image.Image, classifier: AttributeClassifier
) -> None:
    edit = calotype.AutoPipelineForImage2Image.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    second = edit(
        "a big red cube on sand by day",
        image=cube,
        strength=0.8,
        num_inference_steps=STEPS,
        generator=seeds(1, 4),
    ).images[0]
    before, after = read(classifier, [cube]), read(classifier, [second])
    assert ("blue", "cube") in found(before, 0)
    assert "red" in {color for color, _ in found(after, 0)}
    assert (before.center[0, 0] - after.center[0, 0]).abs().max() < 0.3


def test_inpainting_puts_the_object_into_the_hole_and_touches_nothing_else(
    pipe: Any, cube: PIL.Image.Image, classifier: AttributeClassifier
) -> None:
    reading = read(classifier, [cube])
    x = float(reading.center[0, 0, 0])
    left = 0 if x > 0 else 64
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[32:120, left : left + 64] = 255
    fill = calotype.AutoPipelineForInpainting.from_pipe(pipe)
    fill.set_progress_bar_config(disable=True)
    made = fill(
        "a big red ball next to a big blue cube on sand by day",
        image=cube,
        mask_image=PIL.Image.fromarray(mask),
        strength=1.0,
        num_inference_steps=STEPS,
        generator=seeds(1, 2),
    ).images[0]
    result = fill.image_processor.apply_overlay(PIL.Image.fromarray(mask), cube, made)
    kept = mask == 0
    assert (np.asarray(result)[kept] == np.asarray(cube)[kept]).all()
    assert ("red", "sphere") in found(read(classifier, [result]), 0)
