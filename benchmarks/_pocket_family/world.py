"""Fresh scenes that no training saw: their pictures, what is exactly known of them, and sentences about them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch

from calotype.pocket.captions import (
    FLOOR_PHRASES,
    NOUNS,
    RELATION_PHRASES,
    SKY_PHRASES,
    relations,
    with_article,
)
from calotype.pocket.labels import Labels, instances_of, labels_of, segments_of
from calotype.pocket.prompts import Prompt
from calotype.pocket.renderer import render
from calotype.pocket.scene import SceneBatch, SceneRecord, sample_scenes
from calotype.pocket.vocabulary import COLORS

SIDE = 128


@dataclass(frozen=True)
class World:
    """N scenes and their renderings, on the CPU."""

    scenes: SceneBatch
    pictures: torch.Tensor
    """[N, 3, H, W] in [0, 1], in steps of 8 bits"""
    depth: torch.Tensor
    """[N, H, W], along the camera's axis"""
    instances: torch.Tensor
    """uint8 [N, H, W]: 0 sky, 1 floor, 2 + k the object k"""
    segments: torch.Tensor
    """uint8 [N, H, W], of ``labels.SEGMENTS``"""

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def nearness(self) -> torch.Tensor:
        """Inverse depth [N, H, W], about 0 for the sky."""
        return 1 / self.depth

    @property
    def labels(self) -> Labels:
        """The objects from left to right."""
        return labels_of(self.scenes)


def fresh(
    count: int, seed: int, device: torch.device | str, split: str = "heldout", supersample: int = 2
) -> World:
    """Scenes of a split, the same on every device; their main objects are pairs that no training saw in ``heldout``."""
    return rendered(
        sample_scenes(count, torch.Generator().manual_seed(7_919 + seed), split), device, supersample
    )


def rendered(scenes: SceneBatch, device: torch.device | str, supersample: int = 2) -> World:
    """Scenes with their renderings."""
    views = render(scenes.to(device), SIDE, supersample)
    instances = instances_of(views).cpu()
    return World(
        scenes=scenes,
        pictures=(views.rgb * 255).round().cpu() / 255,
        depth=views.depth[:, 0].cpu(),
        instances=instances,
        segments=segments_of(instances, scenes),
    )


def sentences(scenes: SceneBatch, seed: int, recolor: bool = False) -> list[Prompt]:
    """A sentence about each scene that names all its objects, floor and sky.

    With ``recolor`` every object gets another colour than it has, which the picture does not tell.
    """
    rng = random.Random(seed)
    found = []
    for record in scenes.records():
        colors = [thing.color for thing in record.objects]
        if recolor:
            free = [color for color in COLORS if color not in colors]
            colors = rng.sample(free, len(colors))
        found.append(_sentence(record, colors, rng))
    return found


def _sentence(record: SceneRecord, colors: list[str], rng: random.Random) -> Prompt:
    names = [
        with_article(f"{color} {rng.choice(NOUNS[thing.shape])}")
        for color, thing in zip(colors, record.objects, strict=True)
    ]
    place = f"{rng.choice(FLOOR_PHRASES[record.floor])} {rng.choice(SKY_PHRASES[record.sky])}"
    main = record.objects[0].shape, colors[0], record.floor, record.sky
    if len(names) == 1:
        return Prompt(f"{names[0]} {place}", *main)
    sides = [name for name in relations(0, 1, record) if name in ("left", "right")]
    between = rng.choice(RELATION_PHRASES[sides[0]]) if sides else "and"
    rest = f" and {names[2]}" if len(names) > 2 else ""
    return Prompt(
        f"{names[0]} {between} {names[1]}{rest} {place}",
        *main,
        second_shape=record.objects[1].shape,
        second_color=colors[1],
        relation=sides[0] if sides else None,
    )


def as_tensor(images: list[Any]) -> torch.Tensor:
    """PIL pictures of one size -> [B, 3, H, W] in [0, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def as_pictures(values: torch.Tensor) -> list[PIL.Image.Image]:
    """[B, 3, H, W] or [B, H, W] in [0, 1] -> PIL pictures, RGB or grey."""
    pixels = (values.clamp(0, 1) * 255).round().byte().cpu()
    if pixels.ndim == 4:
        pixels = pixels.permute(0, 2, 3, 1)
    return [PIL.Image.fromarray(one.numpy()) for one in pixels]
