"""Pictures as latents and captions as what the denoiser reads, encoded once and kept in memory or on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from calotype.core.files import replacing
from calotype.diffusion.codec import moments
from calotype.training.data.folder import Example, File, open_picture
from calotype.training.data.sizes import Size, cut

Texts = Callable[[Sequence[str]], Mapping[str, torch.Tensor]]
"""Captions -> what a batch has of them, by name, each [B, …]."""


class Latents(NamedTuple):
    """Mean and standard deviation [C, H, W] of a picture's scaled latents, and the numbers that SDXL is told."""

    mean: torch.Tensor
    std: torch.Tensor
    time_ids: torch.Tensor


@dataclass(frozen=True)
class PictureEncoder:
    """Pictures through an autoencoder, which is left as it is; results are on the CPU.

    With ``cache`` pictures in the crop of the middle are kept: in memory, and in ``folder`` if there is one.
    """

    vae: Any
    identity: str = ""
    """what the autoencoder is, for the names of files"""
    cache: bool = True
    folder: Path | None = None
    _kept: dict[tuple[File, Size, bool], Latents] = field(default_factory=dict)

    def __call__(
        self, example: Example, size: Size, flip: bool, place: tuple[float, float] | None = None
    ) -> Latents:
        """The latents of a crop at ``place``, or of the middle."""
        if place is not None or not self.cache:
            return self._encoded(example, size, flip, place or (0.5, 0.5))
        key = (example.path, size, flip)
        if key not in self._kept:
            self._kept[key] = self._from_disk(example, size, flip)
        return self._kept[key]

    def _from_disk(self, example: Example, size: Size, flip: bool) -> Latents:
        if self.folder is None:
            return self._encoded(example, size, flip, (0.5, 0.5))
        digest = hashlib.sha256(example.path.read_bytes())
        digest.update(json.dumps([self.identity, size, flip]).encode())
        path = self.folder / f"{digest.hexdigest()[:32]}.safetensors"
        return Latents(
            **_kept_tensors(path, lambda: self._encoded(example, size, flip, (0.5, 0.5))._asdict())
        )

    @torch.no_grad()
    def _encoded(self, example: Example, size: Size, flip: bool, place: tuple[float, float]) -> Latents:
        piece = cut(open_picture(example.path), size, place, flip)
        pixels = piece.pixels[None].to(self.vae.device, self.vae.dtype)
        mean, std = moments(self.vae, pixels)
        numbers = [*piece.original, *piece.corner, *size]
        return Latents(
            mean[0].float().cpu(), std[0].float().cpu(), torch.tensor(numbers, dtype=torch.float32)
        )


def encode_texts(
    texts: Iterable[str], read: Texts, identity: str = "", folder: Path | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """Caption -> its tensors on the CPU, each read once; kept in ``folder`` if there is one."""

    @torch.no_grad()
    def row(text: str) -> dict[str, torch.Tensor]:
        return {name: value[0].cpu().clone() for name, value in read([text]).items()}

    found = {}
    for text in dict.fromkeys(texts):
        if folder is None:
            found[text] = row(text)
            continue
        name = hashlib.sha256(json.dumps([identity, text]).encode()).hexdigest()[:32]

        def make(text: str = text) -> dict[str, torch.Tensor]:
            return row(text)

        found[text] = _kept_tensors(folder / f"text-{name}.safetensors", make)
    return found


def _kept_tensors(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What a file holds; it is made and written first if it is not there."""
    from safetensors.torch import load_file, save_file

    if path.is_file():
        return load_file(path)
    tensors = {name: value.contiguous() for name, value in make().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary)
    return tensors
