"""The scenes of the recipe, in chunks that are drawn from seeds, and their pictures: rendered, or kept from before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.files import replacing
from calotype.training.recipes.pocket.settings import PocketSettings

_CHUNK_SEEDS = 1_000_003
"""Seeds of chunks of different purposes are this far apart."""
PURPOSES = {"images": 0, "latents": 1, "validation": 2, "corpus": 3, "reading": 4, "views": 5}


def _seed(settings: PocketSettings, purpose: str, chunk: int) -> int:
    return settings.seed + _CHUNK_SEEDS * (1 + PURPOSES[purpose]) + chunk


def chunk_moving(settings: PocketSettings, purpose: str, chunk: int, count: int) -> Any:
    """The moving scenes of a chunk, on the CPU, or ``None`` if its scenes are at rest.

    Of the chunks for training ``settings.data.moving`` are of moving scenes, evenly spread.
    """
    from calotype.pocket.motion import sample_moving_scenes

    share = settings.data.moving
    rests = purpose in ("images", "validation") or int((chunk + 1) * share) == int(chunk * share)
    if rests:
        return None
    return sample_moving_scenes(count, torch.Generator().manual_seed(_seed(settings, purpose, chunk)))


def chunk_scenes(settings: PocketSettings, purpose: str, chunk: int, count: int) -> Any:
    """The ``count`` scenes of a chunk, on the CPU; validation's are of the held-out split."""
    from calotype.pocket.scene import sample_scenes

    generator = torch.Generator().manual_seed(_seed(settings, purpose, chunk))
    moving = chunk_moving(settings, purpose, chunk, count)
    if moving is not None:
        return moving.at(torch.rand(count, generator=generator))
    return sample_scenes(count, generator, split="heldout" if purpose == "validation" else "train")


Renderer = Callable[[Any], Any]
"""Scenes to their ``Rendering`` on a device."""


def scene_renderer(settings: PocketSettings, device: torch.device, say: Callable[[str], None]) -> Renderer:
    """The renderer on ``device``, compiled on a GPU or if the settings say so; plain if that fails."""
    from calotype.pocket.renderer import compiled_renderer, render

    def plain(scenes: Any) -> Any:
        return render(scenes.to(device), settings.pixels, settings.supersample)

    if device.type != "cuda" and not settings.on_cpu.compiled_renderer:
        return plain
    compiled = compiled_renderer(settings.pixels, settings.supersample)
    began = time.monotonic()
    try:
        compiled(chunk_scenes(settings, "images", 0, 128 if device.type == "cuda" else 1).to(device))
        wait_for(device)
        say(f"renderer compiled in {time.monotonic() - began:.0f} s")
    except Exception as error:
        say(f"WARNING: the renderer does not compile, rendering uncompiled, more slowly: {error}"[:1500])
        return plain
    return lambda scenes: compiled(scenes.to(device))


def picture_renderer(
    settings: PocketSettings, device: torch.device, say: Callable[[str], None]
) -> Callable[[Any], torch.Tensor]:
    """:func:`scene_renderer` for the pictures alone, [B, 3, H, W] in [0, 1]."""
    render = scene_renderer(settings, device, say)
    return lambda scenes: render(scenes).rgb


class PictureSource:
    """The pictures of a chunk: rendered, or read from ``folder`` if they were rendered before.

    Without a folder none are kept. Raises ``InputError`` if kept pictures are not as many as asked for.
    """

    def __init__(
        self,
        settings: PocketSettings,
        device: torch.device,
        say: Callable[[str], None],
        folder: Path | None,
    ) -> None:
        self._settings, self._device, self._say, self._folder = settings, device, say, folder
        self._render: Callable[[Any], torch.Tensor] | None = None
        self._ahead: dict[tuple[str, int, int], Any] = {}

    def prepare(self, purpose: str, chunk: int, count: int) -> None:
        """Draw a chunk's scenes now, while the device is busy."""
        if self._path(purpose, chunk) is None:
            self._ahead[purpose, chunk, count] = chunk_scenes(self._settings, purpose, chunk, count)

    def __call__(self, purpose: str, chunk: int, count: int) -> torch.Tensor:
        """``count`` pictures [count, 3, H, W] in [0, 1] on the device."""
        path = self._path(purpose, chunk)
        if path is not None and path.exists():
            stored = torch.load(path, weights_only=True)
            if len(stored) != count:
                raise InputError(
                    f"{path} holds {len(stored)} pictures of other settings, not {count}: remove its folder."
                )
            return stored.to(self._device).float() / 255
        if self._render is None:
            self._render = picture_renderer(self._settings, self._device, self._say)
        scenes = self._ahead.pop((purpose, chunk, count), None)
        pictures = self._render(
            chunk_scenes(self._settings, purpose, chunk, count) if scenes is None else scenes
        )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                torch.save((pictures * 255).round().byte().cpu(), temporary)
        return pictures

    def _path(self, purpose: str, chunk: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{purpose}-{chunk}.pt"


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
