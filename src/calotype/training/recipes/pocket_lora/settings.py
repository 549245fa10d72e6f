"""Numbers of the recipe of ``pocket-lora-heart``."""

from __future__ import annotations

from dataclasses import dataclass

from calotype.training.fine_tuning.settings import LORA_TARGETS


@dataclass(frozen=True)
class LoraLessonSettings:
    """``batch`` counts pictures of the new shape; as many of the checkpoint's own are beside them."""

    seed: int = 30_041
    shape: str = "heart"
    pictures: int = 20
    supersample: int = 2
    prior: int = 100
    """pictures that the checkpoint draws of what it knows"""
    prior_steps: int = 20
    prior_guidance: float = 5.0
    prior_loss_weight: float = 1.0
    rank: int = 8
    targets: str = f"{LORA_TARGETS},ff.net.0.proj,ff.net.2,proj_in,proj_out"
    """attention alone knows where something goes, less what it looks like"""
    batch: int = 20
    steps: int = 800
    learning_rate: float = 1e-3
    warmup: int = 20
    empty_prompts: float = 0.1
    weight_decay: float = 0.0


PRESETS = {
    "full": LoraLessonSettings(),
    "tiny": LoraLessonSettings(
        pictures=3, supersample=1, prior=2, prior_steps=2, rank=1, batch=2, steps=2, warmup=1
    ),
}
