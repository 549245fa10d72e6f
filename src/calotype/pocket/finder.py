"""A network that says whether a picture shows a shape that the classifier does not know; it only ever saw renders.

It reads the classifier's features, so it has few weights. ``python -m calotype.pocket.finder --classifier FILE --out
FILE`` trains one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calotype.core.errors import InputError
from calotype.pocket.classifier import PICTURE_SIZE, AttributeClassifier, load_classifier
from calotype.pocket.classifier_training import roughen
from calotype.pocket.judge_files import load_network, save_network
from calotype.pocket.labels import labels_of
from calotype.pocket.renderer import render
from calotype.pocket.scene import concatenate, sample_scenes
from calotype.pocket.vocabulary import EXTRA_SHAPES, MAX_OBJECTS

FOUND = 0.5
"""Probability above which a picture shows the shape."""
_RENDERED_AT_A_TIME = 128


class ShapeFinder(nn.Module):
    """The classifier's features [B, width, 16, 16] -> logits [B]: how surely it is anywhere; 0.1 M parameters."""

    def __init__(self, width: int = 112, hidden: int = 96) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width, hidden, 1)
        self.around = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.place = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """The highest of the places' logits."""
        hidden = F.silu(self.around(F.silu(self.narrow(features))))
        return self.place(hidden).flatten(1).amax(1)


@torch.no_grad()
def find_shape(finder: ShapeFinder, classifier: AttributeClassifier, images: Tensor) -> Tensor:
    """Probabilities [B] that pictures [B, 3, H, W] in [0, 1] show the shape, on the CPU."""
    if images.shape[-2:] != (PICTURE_SIZE, PICTURE_SIZE):
        images = F.interpolate(images, (PICTURE_SIZE, PICTURE_SIZE), mode="bicubic", antialias=True).clamp(
            0, 1
        )
    weight = classifier.place.weight
    parts = [
        finder(classifier.features(part.to(weight.device, weight.dtype))).sigmoid().cpu()
        for part in images.split(64)
    ]
    return torch.cat(parts)


class _Pictures:
    """Renders, 8 bits each on the device, and what is known of them: a half with the shape, a half without it.

    In the second half of those without it the objects are turned over, so that no cone on its tip is taken for a heart.
    """

    def __init__(self, shape: str, count: int, seed: int, device: torch.device, supersample: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.half, self.quarter = count // 2, count // 4
        shown = sample_scenes(self.half, generator, "all", shape)
        others = sample_scenes(self.half, generator, "all")
        roll = (2 * torch.rand(self.half, MAX_OBJECTS, generator=generator) - 1) * math.pi
        roll[: self.quarter] = 0
        scenes = concatenate([shown, replace(others, roll=roll)]).to(device)
        self.labels = labels_of(scenes)
        self.shown = (torch.arange(len(scenes), device=device) < self.half).float()
        self.images = torch.cat(
            [
                (render(part, PICTURE_SIZE, supersample).rgb * 255 + 0.5).byte()
                for part in scenes.chunks(_RENDERED_AT_A_TIME)
            ]
        )


def train_finder(
    classifier: AttributeClassifier,
    shape: str,
    scenes: int = 6144,
    steps: int = 1500,
    batch: int = 128,
    *,
    seed: int = 0,
    supersample: int = 2,
    learning_rate: float = 2e-3,
) -> ShapeFinder:
    """Train one on the classifier's device, on renders that are roughened anew each time they are drawn.

    Raises ``InputError`` for a shape that the classifier knows.
    """
    if shape not in EXTRA_SHAPES:
        raise InputError(
            f"The classifier knows the shape {shape!r}; a finder is for {', '.join(EXTRA_SHAPES)}."
        )
    device = classifier.place.weight.device
    pictures = _Pictures(shape, scenes, seed, device, supersample)
    generator = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)
    finder = ShapeFinder(classifier.width).to(device)
    optimizer = torch.optim.AdamW(finder.parameters(), lr=learning_rate, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = torch.randint(len(pictures.images), (batch,), generator=generator, device=device)
        images, _ = roughen(pictures.images[index].float() / 255, pictures.labels[index], generator)
        with torch.no_grad():
            features = classifier.features(images)
        loss = F.binary_cross_entropy_with_logits(finder(features), pictures.shown[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return finder.eval()


def evaluate_finder(
    finder: ShapeFinder,
    classifier: AttributeClassifier,
    shape: str,
    scenes: int = 512,
    seed: int = 1_000_003,
    supersample: int = 2,
) -> dict[str, float]:
    """Shares of fresh renders that are read rightly: with the shape, without it, and without it and turned over."""
    pictures = _Pictures(shape, scenes, seed, classifier.place.weight.device, supersample)
    found = find_shape(finder, classifier, pictures.images.float() / 255) > FOUND
    shown, plain, turned = found.double().tensor_split([pictures.half, pictures.half + pictures.quarter])
    return {
        "with one": float(shown.mean()),
        "without one": 1 - float(plain.mean()),
        "turned over": 1 - float(turned.mean()),
    }


def save_finder(finder: ShapeFinder, path: str | Path, shape: str, metadata: dict[str, object]) -> None:
    """Write fp16 safetensors, atomically, with ``metadata`` as JSON in the header."""
    save_network(finder, path, {"shape": shape, "training": json.dumps(metadata)})


def load_finder(path: str | Path, device: torch.device | str = "cpu") -> ShapeFinder:
    """A finder in float32, ready to read.

    Raises:
        ModelFilesError: there is no such file, or it does not hold a finder.
    """

    def build(state: Mapping[str, Tensor], header: Mapping[str, str]) -> ShapeFinder:
        hidden, width = state["narrow.weight"].shape[:2]
        return ShapeFinder(width, hidden)

    return load_network(path, "finder", f"python -m calotype.pocket.finder --out {path}", build, device)


def main(arguments: list[str] | None = None) -> None:
    """Train a finder of a new shape, print how much it reads rightly on fresh renders, and write it."""
    parser = argparse.ArgumentParser(prog="python -m calotype.pocket.finder", description=main.__doc__)
    parser.add_argument("--classifier", type=Path, required=True, help="file of the attribute classifier")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    parser.add_argument("--shape", default=EXTRA_SHAPES[0], choices=EXTRA_SHAPES)
    parser.add_argument("--scenes", type=int, default=6144, help="rendered scenes to learn from")
    parser.add_argument("--fresh", type=int, default=1024, help="others to judge it on")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--supersample", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    classifier = load_classifier(given.classifier, given.device)
    finder = train_finder(
        classifier, given.shape, given.scenes, given.steps, given.batch, seed=given.seed,
        supersample=given.supersample,
    )  # fmt: skip
    read = evaluate_finder(
        finder, classifier, given.shape, given.fresh, given.seed + 1_000_003, given.supersample
    )
    for name, share in read.items():
        print(f"{given.shape}, renders {name}: {100 * share:6.2f} % right", flush=True)
    record = {"scenes": given.scenes, "steps": given.steps, "batch": given.batch, "seed": given.seed, **read}
    save_finder(finder, given.out, given.shape, record)
    print(f"wrote {given.out} ({given.out.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
