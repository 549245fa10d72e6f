"""Clips of moving scenes: rendered, encoded and captioned in chunks that are drawn from seeds, and read as they come.

On a GPU a process of its own makes them while the networks are compiled and trained on what is there already.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from calotype.core.files import replacing
from calotype.training.gradients import precision
from calotype.training.objectives import stratified_timesteps
from calotype.training.recipes.base import Base, load_base
from calotype.training.recipes.chunks import DONE, VALIDATION, ChunkFolder, chunk_name, clear
from calotype.training.recipes.pocket.networks import autocast_type
from calotype.training.recipes.pocket.pictures import picture_renderer
from calotype.training.recipes.pocket.settings import PocketSettings
from calotype.training.recipes.pocket_motion.settings import MotionSettings

_CHUNK_SEEDS = 1_000_003
_PART = 512
"""Pictures encoded at a time."""


def chunk_scenes(settings: MotionSettings, chunk: int, count: int) -> Any:
    """The ``count`` moving scenes of a chunk, on the CPU; chunk -1 is validation's, of the held-out split."""
    from calotype.pocket.motion import sample_moving_scenes

    generator = torch.Generator().manual_seed(settings.seed + _CHUNK_SEEDS * (2 + chunk))
    return sample_moving_scenes(count, generator, "heldout" if chunk < 0 else "train")


def chunk_captions(settings: MotionSettings, chunk: int, moving: Any) -> list[list[str]]:
    """``settings.clips.captions`` captions for each scene of a chunk."""
    from calotype.pocket.motion_captions import motion_captions

    seed = random.Random(f"{settings.seed} {chunk}").getrandbits(32)
    return motion_captions(moving, seed, settings.clips.captions)


def make_clips(
    settings: MotionSettings,
    folder: Path,
    base: Base,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Write chunks of clips to ``folder`` until all are made or ``seconds`` are over, then an empty file ``done``.

    A chunk is (float16 latents [N, C, F, H, W], int16 token ids [N, K, L], ways of the main object [N, F, 3]).
    Validation's is made after the first.
    """
    chosen, device, began = settings.clips, base.device, time.monotonic()
    clear(folder)
    pocket = PocketSettings(seed=settings.seed, pixels=base.pixels, supersample=chosen.supersample)
    render = picture_renderer(pocket, device, say)
    counts = {
        number: min(chosen.chunk, chosen.count - start)
        for number, start in enumerate(range(0, chosen.count, chosen.chunk))
    }
    order = [0, -1, *list(counts)[1:]]
    made, said = 0, began
    for number in order:
        count = chosen.validation if number < 0 else counts[number]
        moving = chunk_scenes(settings, number, count)
        pictures = render(moving.frames(chosen.frames))
        parts = []
        for part in pictures.split(_PART):
            with precision(device, autocast_type(pocket, device)):
                parts.append(base.latents(part).half())
        latents = torch.cat(parts).unflatten(0, (count, chosen.frames)).transpose(1, 2).contiguous()
        rows = chunk_captions(settings, number, moving)
        ids = torch.tensor(
            [[base.encoder.encode(text, base.length) for text in row] for row in rows], dtype=torch.int16
        )
        path = folder / (VALIDATION if number < 0 else chunk_name(number))
        with replacing(path) as temporary:
            torch.save((latents.cpu(), ids, moving.ways(chosen.frames).half().cpu()), temporary)
        made += count if number >= 0 else 0
        now = time.monotonic()
        if now - said > 15:
            said = now
            say(f"{made:,} of {chosen.count:,} clips, {made / (now - began):,.0f} a second")
        if number != 0 and now - began > seconds:
            break
    (folder / DONE).touch()
    say(f"{made:,} clips after {time.monotonic() - began:.0f} s")


def make_clips_aside(settings: MotionSettings, folder: Path, base: Path, seconds: float, device: str) -> None:
    """:func:`make_clips` in this process, which has nothing yet."""

    def say(text: str) -> None:
        print(f"             clips: {text}", flush=True)

    torch.set_num_threads(2)
    make_clips(settings, folder, load_base(base, torch.device(device)), seconds, say)


def start_clips(settings: MotionSettings, folder: Path, base: Path, seconds: float, device: str) -> Any:
    """A process that makes clips beside this one."""
    # spawned, because a process with a CUDA context must not be forked
    clear(folder)
    process = get_context("spawn").Process(
        target=make_clips_aside, args=(settings, folder, base, seconds, device), name="clips"
    )
    process.start()
    return process


@dataclass
class ClipSet:
    """The clips of a folder on a device, as many as there are; more come with :meth:`look`."""

    source: ChunkFolder
    device: torch.device
    parts: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.parts[0]) if self.parts else 0

    @property
    def latents(self) -> torch.Tensor:
        """float16 [N, C, F, H, W]"""
        return self.parts[0]

    @property
    def ids(self) -> torch.Tensor:
        """int16 [N, K, L]"""
        return self.parts[1]

    @property
    def ways(self) -> torch.Tensor:
        """float16 [N, F, 3], of the main object: see ``MovingScenes.ways``"""
        return self.parts[2]

    def look(self) -> None:
        """Take in the chunks that have been written since."""
        self.take(self.source.fresh())

    def take(self, paths: list[Path]) -> None:
        """Add the clips of these files."""
        if not paths:
            return
        found = [
            tuple(part.to(self.device) for part in torch.load(path, weights_only=True)) for path in paths
        ]
        known = [self.parts] if self.parts else []
        self.parts = tuple(torch.cat(parts) for parts in zip(*known, *found, strict=True))


@dataclass(frozen=True)
class ClipBatches:
    """Batches of clips: latents, what is read in one of their captions (or the empty one), noise and timesteps.

    Once all clips are there the same number gives the same batch.
    """

    data: ClipSet
    base: Base
    settings: MotionSettings
    look_every: int = 20

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """The batch of this number, drawn on the device."""
        if number % self.look_every == 0:
            self.data.look()
        chosen, device = self.settings.train, self.base.device
        generator = torch.Generator(device).manual_seed(self.settings.seed + number)
        options: dict[str, Any] = {"generator": generator, "device": device}
        index = torch.randint(len(self.data), (chosen.batch,), **options)
        which = torch.randint(self.data.ids.shape[1], (chosen.batch,), **options)
        dropped = torch.rand((chosen.batch, 1), **options) < chosen.caption_dropout
        ids = torch.where(dropped, self.base.ids([""]), self.data.ids[index, which].long())
        latents = self.data.latents[index].float()
        steps = int(self.base.scheduler.config.num_train_timesteps)
        timesteps = stratified_timesteps(torch.rand((1,), **options), chosen.batch, steps)
        faint = torch.rand((chosen.batch,), **options) < chosen.faint
        before_last = (torch.rand((chosen.batch,), **options) * (steps / 10)).long()
        amplitude = (torch.rand((chosen.batch,), **options) * 2 - 1).clamp_min(0)  # half of them noise alone
        return {
            "latents": latents,
            "states": self.base.read(ids),
            "noise": torch.randn(latents.shape, **options),
            "timesteps": torch.where(faint, steps - 1 - before_last, timesteps),
            "signal": torch.where(faint, amplitude.square(), 1.0),
            "ways": self.data.ways[index].float(),
        }
