"""The bundled motion adapter moves what the words name, the way that they say, as read by a classifier of renders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import calotype
from calotype.pocket.classifier import load_classifier, read_pictures
from calotype.pocket.motion import FRAMES
from calotype.pocket.motion_judging import MotionPrompt, judge_motion

CLASSIFIER = Path(__file__).parents[2] / "benchmarks" / "pocket_classifier.safetensors"


def test_what_the_words_name_goes_where_they_say() -> None:
    asked = [
        MotionPrompt("a red ball rolling to the right on grass", "right", "sphere", "red"),
        MotionPrompt("a blue cube sliding to the left on snow", "left", "cube", "blue"),
    ]
    pipe = calotype.load("pocket-motion", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    clips = pipe(
        [prompt.text for prompt in asked],
        num_frames=FRAMES,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(asked))],
    ).frames
    frames = np.stack([np.asarray(frame) for clip in clips for frame in clip])
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    verdicts = judge_motion(asked, read_pictures(load_classifier(CLASSIFIER, "cpu"), pictures), FRAMES)
    assert all(verdict.direction and verdict.color for verdict in verdicts), verdicts
