"""A network that says of each pixel what it shows, to judge generated pictures; it only ever saw rendered scenes.

``calotype train pocket-family --member pocket-segmenter`` trains one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calotype.pocket.classifier import Residual, halving
from calotype.pocket.judge_files import load_network, save_network
from calotype.pocket.labels import SEGMENTS

FILE = "segmenter.safetensors"
_WIDTHS = (32, 64, 96)


class Segmenter(nn.Module):
    """Pictures [B, 3, H, W] in [0, 1] -> logits [B, 11, H, W] of ``labels.SEGMENTS``; 0.4 M parameters.

    A U-Net (arXiv:1505.04597) of three resolutions; H and W are divisible by 8.
    """

    def __init__(self, widths: tuple[int, int, int] = _WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.down1 = nn.Sequential(halving(3, first, 5), Residual(first))
        self.down2 = nn.Sequential(halving(first, second, 3), Residual(second))
        self.down3 = nn.Sequential(halving(second, third, 3), Residual(third, dilation=2))
        self.narrow2, self.up2 = nn.Conv2d(third, second, 1), Residual(second)
        self.narrow1, self.up1 = nn.Conv2d(second, first, 1), Residual(first)
        self.head = nn.Conv2d(first, len(SEGMENTS), 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down1(images * 2.0 - 1.0)
        middle = self.down2(fine)
        coarse = self.down3(middle)
        middle = self.up2(middle + _doubled(self.narrow2(coarse)))
        fine = self.up1(fine + _doubled(self.narrow1(middle)))
        return _doubled(self.head(fine))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


@torch.no_grad()
def segment_pictures(segmenter: Segmenter, images: Tensor, batch_size: int = 64) -> Tensor:
    """uint8 [B, H, W]: what each pixel of pictures [B, 3, H, W] in [0, 1] shows, on their device."""
    weight = segmenter.head.weight
    parts = [segmenter(part.to(weight.device, weight.dtype)).argmax(1) for part in images.split(batch_size)]
    return torch.cat(parts).to(images.device, torch.uint8)


def save_segmenter(segmenter: Segmenter, path: str | Path) -> None:
    """Write fp16 safetensors, atomically."""
    save_network(segmenter, path, {})


def load_segmenter(path: str | Path, device: torch.device | str = "cpu") -> Segmenter:
    """A segmenter in float32, ready to read.

    Raises:
        ModelFilesError: there is no such file, or it does not hold a segmenter.
    """

    def build(state: Mapping[str, Tensor], header: Mapping[str, str]) -> Segmenter:
        first, second, third = (len(state[f"down{i}.1.conv1.weight"]) for i in (1, 2, 3))
        return Segmenter((first, second, third))

    command = "calotype train pocket-family --member pocket-segmenter"
    return load_network(path, "segmenter", command, build, device)
