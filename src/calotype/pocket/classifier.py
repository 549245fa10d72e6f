"""A network that reads the attributes off a picture, to judge generated ones; it only ever saw rendered scenes.

It finds objects as peaks of a heat map of their centres (Zhou et al. 2019, "Objects as Points") and reads shape and
colour where the peaks are; floor and sky come from the whole picture.

``python -m calotype.pocket.classifier --out FILE.safetensors`` trains one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calotype.pocket.judge_files import load_network, save_network
from calotype.pocket.labels import reading_order
from calotype.pocket.vocabulary import COLORS, FLOORS, MAX_OBJECTS, SHAPES, SKIES

PICTURE_SIZE = 128
GRID = 16
"""Cells of the heat map along a side."""
PRESENT = 0.35
"""Heat above which a peak is an object."""


@dataclass(frozen=True)
class Reading:
    """What B pictures show; slots run from left to right, empty ones hold -1 as id and probabilities of 0."""

    count: Tensor
    """int64 [B]"""
    shape: Tensor
    """int64 [B, 3]"""
    color: Tensor
    """int64 [B, 3]"""
    shape_probability: Tensor
    """[B, 3, 9]"""
    color_probability: Tensor
    """[B, 3, 10]"""
    center: Tensor
    """[B, 3, 2]: x and y on the picture, -1 to 1, y up; to within a cell of the heat map"""
    floor: Tensor
    """int64 [B]"""
    sky: Tensor
    """int64 [B]"""


@dataclass(frozen=True)
class Maps:
    """The network's raw outputs."""

    heat: Tensor
    """[B, GRID, GRID] logits: is an object's centre here?"""
    shape: Tensor
    """[B, 9, GRID, GRID] logits"""
    color: Tensor
    """[B, 10, GRID, GRID] logits"""
    floor: Tensor
    """[B, 5] logits"""
    sky: Tensor
    """[B, 4] logits"""


class Residual(nn.Module):
    """Two convolutions added to what they read."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W], and as large again"""
        hidden = F.silu(self.norm1(self.conv1(x)))
        return F.silu(x + self.norm2(self.conv2(hidden)))


def halving(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A convolution that halves height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class AttributeClassifier(nn.Module):
    """Pictures [B, 3, 128, 128] in [0, 1] -> :class:`Maps`; 0.9 M parameters, 0.6 GFLOP a picture."""

    def __init__(self, width: int = 112) -> None:
        super().__init__()
        self.width = width
        self.trunk = nn.Sequential(
            halving(3, 32, 5),
            halving(32, 64, 3),
            Residual(64),
            halving(64, width, 3),
            Residual(width),
            Residual(width, dilation=2),
            Residual(width),
        )
        self.place = nn.Conv2d(width, 1 + len(SHAPES) + len(COLORS), 1)
        self.whole = nn.Linear(width, len(FLOORS) + len(SKIES))
        assert self.place.bias is not None
        nn.init.constant_(self.place.bias[:1], -4.0)  # few cells hold a centre

    def features(self, images: Tensor) -> Tensor:
        """[B, width, GRID, GRID]"""
        return self.trunk(images * 2.0 - 1.0)

    def forward(self, images: Tensor) -> Maps:
        hidden = self.features(images)
        heat, shape, color = self.place(hidden).split((1, len(SHAPES), len(COLORS)), dim=1)
        floor, sky = self.whole(hidden.mean((2, 3))).split((len(FLOORS), len(SKIES)), dim=1)
        return Maps(heat[:, 0], shape, color, floor, sky)


def decode(maps: Maps) -> Reading:
    """The three highest peaks above :data:`PRESENT` (at least one), from left to right."""
    heat = maps.heat.float().sigmoid()
    peak = F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0] == heat
    score, cell = (heat * peak).flatten(1).topk(MAX_OBJECTS)
    present = score > PRESENT
    present[:, 0] = True
    column, row = cell % GRID, cell // GRID
    # the centre lies where the heat of the neighbourhood balances
    padded = F.pad(heat, (1, 1, 1, 1))
    batch = torch.arange(len(heat), device=heat.device)[:, None]
    block = torch.stack([padded[batch, row + i, column + j] for i in range(3) for j in range(3)], dim=-1)
    share = block / block.sum(-1, keepdim=True)
    offsets = torch.tensor([-1.0, 0.0, 1.0], device=heat.device)
    x = column + (share * offsets.repeat(3)).sum(-1)
    y = row + (share * offsets.repeat_interleave(3)).sum(-1)
    center = torch.stack(((x + 0.5) * (2 / GRID) - 1, 1 - (y + 0.5) * (2 / GRID)), dim=-1)

    order = reading_order(center, present)
    present = present.gather(1, order)

    def at_peaks(logits: Tensor) -> Tensor:
        probability = logits.float().softmax(1).flatten(2).transpose(1, 2)
        index = cell.gather(1, order).unsqueeze(-1).expand(-1, -1, probability.shape[-1])
        return probability.gather(1, index) * present.unsqueeze(-1)

    shape, color = at_peaks(maps.shape), at_peaks(maps.color)
    return Reading(
        count=present.sum(1),
        shape=torch.where(present, shape.argmax(-1), -1),
        color=torch.where(present, color.argmax(-1), -1),
        shape_probability=shape,
        color_probability=color,
        center=center.gather(1, order.unsqueeze(-1).expand(-1, -1, 2)),
        floor=maps.floor.argmax(1),
        sky=maps.sky.argmax(1),
    )


@torch.no_grad()
def read_pictures(classifier: AttributeClassifier, images: Tensor, batch_size: int = 64) -> Reading:
    """Read pictures [B, 3, H, W] in [0, 1]; other sizes than 128 are resampled first."""
    if images.shape[-2:] != (PICTURE_SIZE, PICTURE_SIZE):
        images = F.interpolate(images, (PICTURE_SIZE, PICTURE_SIZE), mode="bicubic", antialias=True).clamp(
            0, 1
        )
    weight = classifier.place.weight
    parts = [decode(classifier(part.to(weight.device, weight.dtype))) for part in images.split(batch_size)]
    return Reading(
        *(torch.cat([getattr(part, name) for part in parts]) for name in Reading.__dataclass_fields__)
    )


def save_classifier(classifier: AttributeClassifier, path: str | Path, metadata: dict[str, object]) -> None:
    """Write fp16 safetensors, atomically, with ``metadata`` as JSON in the header."""
    save_network(classifier, path, {"width": str(classifier.width), "training": json.dumps(metadata)})


def load_classifier(path: str | Path, device: torch.device | str = "cpu") -> AttributeClassifier:
    """A classifier in float32, ready to read.

    Raises:
        ModelFilesError: there is no such file, or it does not hold a classifier.
    """
    command = f"python -m calotype.pocket.classifier --out {path}"
    return load_network(
        path, "classifier", command, lambda state, header: AttributeClassifier(int(header["width"])), device
    )


def main(arguments: list[str] | None = None) -> None:
    """Train a classifier, print its accuracy on fresh renders and write it."""
    from calotype.pocket.classifier_training import evaluate_classifier, train_classifier

    parser = argparse.ArgumentParser(prog="python -m calotype.pocket.classifier", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    parser.add_argument("--seconds", type=float, default=110.0, help="time for training after compilation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=2048, help="fresh scenes to judge it on")
    options = parser.parse_args(arguments)
    classifier, record = train_classifier(options.seconds, options.device, options.seed)
    accuracy = evaluate_classifier(classifier, options.scenes, seed=options.seed + 1_000_003)
    for name, value in accuracy.items():
        print(f"{name:>12}  {100 * value:6.2f} %", flush=True)
    save_classifier(classifier, options.out, {**record, "accuracy": accuracy, "scenes": options.scenes})
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
