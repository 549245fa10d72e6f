"""All weights of a checkpoint's models: made trainable, and written as a whole checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.settings import ModelSettings


def open_up(settings: ModelSettings, base: Base) -> None:
    """Let all of the UNet, and if so said of the text encoder, be trained."""
    base.pipe.unet.requires_grad_(True)
    if settings.train_text_encoder:
        base.pipe.text_encoder.requires_grad_(True)


def write(base: Base, folder: Path) -> Sequence[str]:
    """Write the pipeline; its index comes last, which marks it as whole."""
    base.pipe.save_pretrained(folder)
    return sorted((path.name for path in folder.iterdir()), key=lambda name: name == "model_index.json")
