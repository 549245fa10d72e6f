"""Pictures themselves as training data, for what is trained on pixels: cut to one size and given out by number."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from calotype.training.data.batches import Drawing, PictureSet, mixed
from calotype.training.data.folder import Example, File, open_picture
from calotype.training.data.sizes import Size, cut
from calotype.training.objectives import stratified_timesteps


@dataclass(frozen=True)
class PixelBatches:
    """The batch of a number: pictures in [-1, 1] of one size, noise, and timesteps if there are any.

    Of ``drawing`` crops and flips are read. With ``cache`` pictures in the crop of the middle are read once and kept in
    memory, a byte for each pixel and channel.
    """

    pictures: PictureSet
    noise: tuple[int, ...]
    """the shape of one picture's noise"""
    device: torch.device
    drawing: Drawing
    timesteps: int | None = None
    cache: bool = True
    seed: int = 0
    _kept: dict[File, torch.Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Pictures in a batch."""
        return self.pictures.batch

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """The batch of this number."""
        generator = torch.Generator().manual_seed(mixed(self.seed, number, 0))
        rows = []
        for index in self.pictures.chosen(number):
            mirrored, top, left = torch.rand(3, generator=generator).tolist()
            pixels = self._pixels(
                self.pictures.examples[index],
                self.pictures.sizes[index],
                (top, left) if self.drawing.random_crop else None,
            )
            rows.append(pixels.flip(-1) if self.drawing.random_flip and mirrored < 0.5 else pixels)
        batch = {
            "images": torch.stack(rows).float() / 127.5 - 1,
            "noise": torch.randn(len(rows), *self.noise, generator=generator),
        }
        if self.timesteps is not None:
            uniform = torch.rand(1, generator=generator)
            batch["timesteps"] = stratified_timesteps(uniform, len(rows), self.timesteps)
        return {name: value.to(self.device) for name, value in batch.items()}

    def middle(self, index: int) -> torch.Tensor:
        """The middle of a picture of the set, [1, 3, H, W] in [-1, 1], on the CPU."""
        pixels = self._pixels(self.pictures.examples[index], self.pictures.sizes[index], None)
        return pixels[None].float() / 127.5 - 1

    def _pixels(self, example: Example, size: Size, place: tuple[float, float] | None) -> torch.Tensor:
        """uint8 [3, H, W] of a crop at ``place``, or of the middle."""
        if place is None and example.path in self._kept:
            return self._kept[example.path]
        piece = cut(open_picture(example.path), size, place or (0.5, 0.5)).pixels
        pixels = ((piece + 1) * 127.5).round().byte()
        if place is None and self.cache:
            self._kept[example.path] = pixels
        return pixels
