"""Pictures from a pipeline, batch by batch, each with a seed of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import calotype
from calotype.pipelines.bundled import BUNDLED


@dataclass(frozen=True)
class Options:
    """How much is drawn, where and how."""

    count: int = 100
    batch: int = 50
    steps: int = 20
    guidance: float = 5.0
    seed: int = 0
    device: str = "cpu"
    base: str = "pocket"
    """the checkpoint of text to image"""
    split: str = "heldout"
    renders: int = 16
    """to see how well the classifier reads, and as many to compare unconditional pictures with"""
    supersample: int = 2
    """rays of a pixel of the rendered scenes, squared"""
    family: Path | None = None
    """a folder of members that stand in place of the installed ones"""
    judges: Path = Path(__file__).parents[1]
    """the folder of the networks that judge"""

    def place(self, name: str) -> str | Path:
        """What a member is loaded by."""
        if name not in BUNDLED:
            return name
        beside = None if self.family is None else self.family / name
        return beside if beside is not None and beside.is_dir() else name

    def has(self, name: str) -> bool:
        """Whether a member is there."""
        return isinstance(self.place(name), Path) or BUNDLED[name].is_dir()

    def load(self, name: str, **more: Any) -> Any:
        """A pipeline without a progress bar."""
        pipe = calotype.load(self.place(name), device=self.device, **more)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def draw(
    pipe: Any,
    texts: Sequence[str],
    options: Options,
    *,
    control: Sequence[Any] | None = None,
    each: dict[str, Sequence[Any]] | None = None,
    **arguments: Any,
) -> list[Any]:
    """One PIL picture a prompt; ``each`` are arguments with a value for every prompt, ``control`` pictures to follow.

    The batch size changes nothing but rounding.
    """
    images: list[Any] = []
    usual = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    for first in range(0, len(texts), options.batch):
        part = slice(first, min(first + options.batch, len(texts)))
        given = {name: list(values[part]) for name, values in (each or {}).items()}
        if control is not None:
            given["control"] = [list(control[part])]
        seeds = range(options.seed + part.start, options.seed + part.stop)
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        images += pipe(list(texts[part]), generator=generator, **{**usual, **given, **arguments}).images
        print(f"\r{len(images)}/{len(texts)} pictures", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 24 + "\r", end="", file=sys.stderr, flush=True)
    return images
