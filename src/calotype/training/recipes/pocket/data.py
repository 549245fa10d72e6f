"""What the pocket model sees: rendered pictures for the VAE, latents with tokenised captions for the UNet.

Scenes are drawn on the CPU from a seed for each chunk, so that worker processes write the captions of the very
scenes that the device renders, and any part can be made again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from calotype.training.gradients import precision
from calotype.training.objectives import stratified_timesteps
from calotype.training.recipes.pocket.networks import autocast_type, latent_shape
from calotype.training.recipes.pocket.pictures import (
    PURPOSES,
    PictureSource,
    chunk_moving,
    chunk_scenes,
    wait_for,
)
from calotype.training.recipes.pocket.reading import CaptionSet, answers_of
from calotype.training.recipes.pocket.settings import PocketSettings
from calotype.training.tokenizer import Encoder

_PARTS = 4
_CHUNKS = 1_000_003
"""Seeds of the captions of different purposes are this far apart."""


def chunk_captions(settings: PocketSettings, purpose: str, chunk: int, count: int) -> list[list[str]]:
    """``settings.data.captions`` captions for each scene of a chunk."""
    from calotype.pocket.captions import caption
    from calotype.pocket.motion_captions import motion_captions

    moving = chunk_moving(settings, purpose, chunk, count)
    if moving is not None:
        return motion_captions(
            moving, settings.seed + _CHUNKS * PURPOSES[purpose] + chunk, settings.data.captions
        )
    rng = random.Random(f"{settings.seed} {purpose} {chunk}")
    records = chunk_scenes(settings, purpose, chunk, count).records()
    least = settings.data.least_detail

    def detail() -> float:
        return least + (1 - least) * rng.random()

    return [[caption(record, rng, detail()) for _ in range(settings.data.captions)] for record in records]


@cache
def encoder_of(folder: Path) -> Encoder:
    """The tokenizer of a folder, read once a process."""
    return Encoder(folder)


def chunk_ids(
    settings: PocketSettings, tokenizer: Path, purpose: str, chunk: int, count: int
) -> torch.Tensor:
    """The captions of a chunk as token ids, int16 [count, captions, length]; worker processes run this."""
    torch.set_num_threads(1)
    encoder, length = encoder_of(tokenizer), settings.text.length
    rows = chunk_captions(settings, purpose, chunk, count)
    return torch.tensor([[encoder.encode(text, length) for text in row] for row in rows], dtype=torch.int16)


def chunk_reading(
    settings: PocketSettings, tokenizer: Path, chunk: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of a chunk for the text encoder: ids as of :func:`chunk_ids`, and answers int8 [count, Q]."""
    scenes = chunk_scenes(settings, "reading", chunk, count)
    answers = answers_of(scenes, chunk_moving(settings, "reading", chunk, count))
    return chunk_ids(settings, tokenizer, "reading", chunk, count), answers.to(torch.int8)


def make_reading(settings: PocketSettings, tokenizer: Path, workers: int) -> CaptionSet:
    """Captions of ``settings.text.scenes`` scenes and what is true of them, on the CPU."""
    chunks = chunks_of(settings.text.scenes, settings.data.chunk)
    with caption_executor(workers) as executor:
        made = [executor.submit(chunk_reading, settings, tokenizer, *chunk) for chunk in chunks]
        ids, answers = zip(*(future.result() for future in made), strict=True)
    return CaptionSet(torch.cat(ids), torch.cat(answers))


def chunks_of(total: int, size: int) -> list[tuple[int, int]]:
    """(number, length) of the chunks that make up ``total``."""
    return [(start // size, min(size, total - start)) for start in range(0, total, size)]


def render_pool(
    settings: PocketSettings,
    pictures: PictureSource,
    device: torch.device,
    seconds: float,
    say: Callable[[str], None],
) -> torch.Tensor:
    """Pictures for the VAE as uint8 [N, 3, H, W] on ``device``, fewer than asked for if ``seconds`` run out."""
    size, began = settings.pixels, time.monotonic()
    pool = torch.empty((settings.vae.images, 3, size, size), dtype=torch.uint8, device=device)
    made = 0
    chunks = chunks_of(len(pool), settings.data.chunk)
    purpose = "latents" if settings.data.keep_pictures else "images"
    for index, (chunk, count) in enumerate(chunks):
        pool[made : made + count] = (pictures(purpose, chunk, count) * 255).round().byte()
        made += count
        if index + 1 < len(chunks):
            pictures.prepare(purpose, *chunks[index + 1])
        wait_for(device)
        if time.monotonic() - began > seconds:
            break
    spent = time.monotonic() - began
    say(f"rendered {made:,} pictures in {spent:.1f} s, {made / spent:,.0f} a second")
    return pool[:made]


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


@dataclass(frozen=True)
class PictureBatches:
    """Batches for the VAE: random pictures of a pool and the noise of the posterior's sample."""

    pool: torch.Tensor
    settings: PocketSettings

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """The batch of this number; the same number gives the same batch."""
        device, batch = self.pool.device, self.settings.vae.batch
        generator = torch.Generator(device).manual_seed(self.settings.seed + number)
        index = torch.randint(len(self.pool), (batch,), generator=generator, device=device)
        noise = torch.randn((batch, *latent_shape(self.settings)), generator=generator, device=device)
        return {"images": to_unit(self.pool[index]), "noise": noise}


@dataclass(frozen=True)
class LatentSet:
    """N pictures' standardised latents (float16 [N, C, H, W]) and captions (int16 ids [N, K, L])."""

    latents: torch.Tensor
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class LatentBatches:
    """Batches for the UNet: latents, one of their captions (or the empty one), noise and timesteps."""

    data: LatentSet
    empty: torch.Tensor
    """int16 [L]"""
    settings: PocketSettings

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """The batch of this number, drawn on the device; the same number gives the same batch."""
        chosen, device = self.settings.unet, self.data.latents.device
        generator = torch.Generator(device).manual_seed(self.settings.seed + number)
        options: dict[str, Any] = {"generator": generator, "device": device}
        index = torch.randint(len(self.data), (chosen.batch,), **options)
        which = torch.randint(self.data.ids.shape[1], (chosen.batch,), **options)
        dropped = torch.rand((chosen.batch, 1), **options) < chosen.caption_dropout
        latents = self.data.latents[index].float()
        return {
            "latents": latents,
            "input_ids": torch.where(dropped, self.empty, self.data.ids[index, which]).long(),
            "noise": torch.randn(latents.shape, **options),
            "timesteps": stratified_timesteps(torch.rand((1,), **options), chosen.batch, 1000),
        }


def caption_workers() -> int:
    """Processes for captions: most of a large machine, none (the calling process does it) on a small one."""
    processors = os.cpu_count() or 1
    return 0 if processors <= 4 else min(14, processors - 2)


class _SameProcess(Executor):
    """Runs each task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def caption_executor(workers: int) -> Iterator[Executor]:
    """That many processes for captions; with none each task is done when it is submitted."""
    if workers == 0:
        yield _SameProcess()
        return
    # spawned, because a process with a CUDA context must not be forked
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@torch.no_grad()
def make_latents(
    settings: PocketSettings,
    vae: Any,
    tokenizer: Path,
    source: PictureSource,
    device: torch.device,
    *,
    purpose: str,
    total: int,
    seconds: float,
    workers: int,
    say: Callable[[str], None],
) -> LatentSet:
    """Render, encode and caption ``total`` scenes, or as many as ``seconds`` allow (one chunk at least)."""
    factor = vae.config.scaling_factor
    chunks = chunks_of(total, settings.data.chunk)
    latents = torch.empty((total, *latent_shape(settings)), dtype=torch.float16, device=device)
    began = said = time.monotonic()
    made = 0
    with caption_executor(workers) as executor:
        # when captions are made in this process, none are made for chunks that time may not allow
        ahead = (
            [executor.submit(chunk_ids, settings, tokenizer, purpose, *c) for c in chunks] if workers else []
        )
        ids: list[Future[torch.Tensor]] = []
        for index, (chunk, count) in enumerate(chunks):
            pictures = source(purpose, chunk, count)
            for part in torch.arange(count, device=device).chunk(_PARTS):
                with precision(device, autocast_type(settings, device)):
                    mean = vae.encode(pictures[part] * 2 - 1).latent_dist.mean
                latents[made + part] = (mean.float() * factor).half()
            made += count
            if workers:
                ids.append(ahead[index])
            else:
                ids.append(executor.submit(chunk_ids, settings, tokenizer, purpose, chunk, count))
            if index + 1 < len(chunks):
                source.prepare(purpose, *chunks[index + 1])
            wait_for(device)
            now = time.monotonic()
            if now - said > 10 or now - began > seconds:
                said = now
                say(f"{purpose}: {made:,} of {total:,} pictures, {made / (now - began):,.0f} a second")
            if now - began > seconds:
                break
        for future in ahead[len(ids) :]:
            future.cancel()
        rendered = time.monotonic() - began
        captions = torch.cat([future.result() for future in ids])
    spent = time.monotonic() - began
    say(f"{purpose}: {made:,} latents after {rendered:.1f} s, with captions after {spent:.1f} s")
    return LatentSet(latents[:made], captions.to(device))


def corpus(settings: PocketSettings) -> Iterator[str]:
    """Captions and the grammar's words, from which the tokenizer is learned."""
    from calotype.pocket import captions, motion_captions

    yield from sorted({*captions.vocabulary(), *motion_captions.vocabulary()})
    for chunk, count in chunks_of(settings.text.corpus // settings.data.captions, settings.data.chunk):
        for row in chunk_captions(settings, "corpus", chunk, count):
            yield from row
