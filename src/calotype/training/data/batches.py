"""Batches of a set of pictures: each a function of its number, so that a resumed run sees what it would have seen."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calotype.training.data.encoded import PictureEncoder
from calotype.training.data.folder import Example
from calotype.training.data.sizes import Size
from calotype.training.objectives import stratified_timesteps


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Examples with the size that each is trained at, given out in batches whose pictures have one size.

    In each epoch every picture comes once, but for those that fill up the last batch of their size.
    """

    examples: tuple[Example, ...]
    sizes: tuple[Size, ...]
    batch: int
    seed: int = 0

    def chosen(self, number: int) -> list[int]:
        """The indices of the examples in the batch of this number."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return _epoch(self, epoch)[place]

    @functools.cached_property
    def batches_per_epoch(self) -> int:
        """Batches until every picture has come."""
        return sum(-(-len(members) // self.batch) for members in self.of_size.values())

    @functools.cached_property
    def of_size(self) -> dict[Size, list[int]]:
        """The indices of the examples of each size."""
        members: dict[Size, list[int]] = {}
        for index, size in enumerate(self.sizes):
            members.setdefault(size, []).append(index)
        return members


@functools.lru_cache(maxsize=8)
def _epoch(pictures: PictureSet, epoch: int) -> list[list[int]]:
    """The batches of an epoch, in an order of its own."""
    generator = torch.Generator().manual_seed(mixed(pictures.seed, epoch, 1))
    batches = []
    for members in pictures.of_size.values():
        order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
        wanted = -(-len(order) // pictures.batch) * pictures.batch
        while len(order) < wanted:
            order += order[: wanted - len(order)]
        batches += [order[i : i + pictures.batch] for i in range(0, wanted, pictures.batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


@dataclass(frozen=True)
class Drawing:
    """What is drawn anew for each sample: crop, flip, an empty caption in place of its own, noise."""

    random_crop: bool = False
    random_flip: bool = False
    empty_captions: float = 0.0
    """how often a caption is left away, in [0, 1]"""
    noise_offset: float = 0.0
    """standard deviation of the noise that is the same in all pixels of a channel"""


@dataclass(frozen=True)
class Batches:
    """The batch of a number: latents, noise, timesteps, what is read in a caption, and the samples' weights.

    ``sets`` give a batch each, one after the other, with a weight for its samples; all of one size then.
    """

    sets: Sequence[tuple[PictureSet, float]]
    encoder: PictureEncoder
    texts: Mapping[str, Mapping[str, torch.Tensor]]
    timesteps: int
    device: torch.device
    drawing: Drawing
    seed: int = 0
    told_sizes: bool = False
    """whether the denoiser is told the sizes, as SDXL's is"""

    @property
    def samples(self) -> int:
        """Pictures in a batch."""
        return sum(pictures.batch for pictures, _ in self.sets)

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """The batch of this number."""
        generator = torch.Generator().manual_seed(mixed(self.seed, number, 0))

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        def uniform(count: int) -> list[float]:
            return torch.rand(count, generator=generator).tolist()

        rows: list[Any] = []
        texts: list[Mapping[str, torch.Tensor]] = []
        weights: list[float] = []
        drawing = self.drawing
        for pictures, weight in self.sets:
            for index in pictures.chosen(number):
                example = pictures.examples[index]
                mirrored, top, left, which, dropped = uniform(5)
                rows.append(
                    self.encoder(
                        example,
                        pictures.sizes[index],
                        drawing.random_flip and mirrored < 0.5,
                        (top, left) if drawing.random_crop else None,
                    )
                )
                caption = example.captions[int(which * len(example.captions))]
                texts.append(self.texts["" if dropped < drawing.empty_captions else caption])
                weights.append(weight)
        mean, std = torch.stack([row.mean for row in rows]), torch.stack([row.std for row in rows])
        noise = drawn(*mean.shape)
        if drawing.noise_offset:
            noise = noise + drawing.noise_offset * drawn(*mean.shape[:2], 1, 1)
        batch = {
            "latents": mean + std * drawn(*mean.shape),
            "noise": noise,
            "timesteps": stratified_timesteps(torch.rand(1, generator=generator), len(rows), self.timesteps),
            **{name: torch.stack([text[name] for text in texts]) for name in texts[0]},
        }
        if any(weight != 1 for weight in weights):
            batch["weights"] = torch.tensor(weights)
        if self.told_sizes:
            batch["time_ids"] = torch.stack([row.time_ids for row in rows])
        return {name: value.to(self.device) for name, value in batch.items()}


def mixed(seed: int, number: int, stream: int) -> int:
    """One seed for a number of one of two streams; different for all that occur."""
    return (seed * 1_000_003 + number * 2 + stream) % 2**63
