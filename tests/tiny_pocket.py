"""A pocket checkpoint of random weights at a size of seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from calotype.core.version import FORMAT_VERSION
from calotype.pipelines.bundled import BUNDLED
from calotype.training.recipes.pocket.networks import (
    build_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
    save_text_encoder,
)
from calotype.training.recipes.pocket.settings import changed, preset
from tests.tiny import randomise

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": FORMAT_VERSION,
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def tiny_pocket(folder: Path) -> Path:
    """Write it into ``folder``, with the bundled checkpoint's words.

    Its embedding of time is as wide as AnimateDiff's, which is the only one that the reference takes.
    """
    settings = changed(preset("tiny"), ["unet.time_width=32"])
    shutil.copytree(BUNDLED["pocket"] / "tokenizer", folder / "tokenizer")
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    randomise(build_vae(settings), 1).save_pretrained(folder / "vae")
    randomise(build_unet(settings), 2).save_pretrained(folder / "unet")
    save_text_encoder(randomise(build_text_encoder(settings, len(words)), 3), folder / "text_encoder")
    build_scheduler(settings).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX), encoding="utf-8")
    return folder
