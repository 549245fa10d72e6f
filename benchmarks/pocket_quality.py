"""Does the pocket model draw what it is asked for, in combinations that it never saw?

    python -m benchmarks.pocket_quality [--model pocket] [--steps 20] [--guidance 5] [--count 200]
                                        [--device cpu] [--out pocket_quality.png]

Prompts name (shape, colour) pairs that were left out of training. A classifier that only ever saw rendered scenes
reads the pictures. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import calotype
from calotype.core.errors import CalotypeError
from calotype.pocket.classifier import load_classifier, read_pictures
from calotype.pocket.classifier_training import evaluate_classifier
from calotype.pocket.judging import Verdict, judge, shares
from calotype.pocket.prompts import Prompt, prompts
from calotype.utils.images import contact_sheet

CLASSIFIER = Path(__file__).parent / "pocket_classifier.safetensors"
BARS = {"color": 95.0, "shape": 90.0, "floor": 90.0, "sky": None, "relation": 80.0}
"""Percent of the generated pictures that must be right; the sky is shown without a bar."""
NAMES = {
    "color": "main object's colour",
    "shape": "main object's shape",
    "floor": "floor",
    "sky": "sky",
    "relation": "left/right relation",
}
READER_BARS = {"shape": 98.0, "color": 98.0, "floor": 98.0, "order": 98.0, "count": None, "sky": None}
"""Percent of fresh renders that the classifier itself must read rightly."""


def draw(pipe: Any, asked: list[Prompt], options: argparse.Namespace) -> list[Any]:
    """One picture a prompt; each has a seed of its own, so that the batch size changes nothing."""
    images: list[Any] = []
    start = time.perf_counter()
    for first in range(0, len(asked), options.batch):
        part = asked[first : first + options.batch]
        seeds = range(options.seed + first, options.seed + first + len(part))
        images += pipe(
            [prompt.text for prompt in part],
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        print(f"\r{len(images)}/{len(asked)} pictures", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    print(f"\r{len(images)} pictures, {seconds / len(images):.2f} s each", file=sys.stderr)
    return images


def as_tensor(images: list[Any]) -> torch.Tensor:
    """PIL pictures of one size -> [B, 3, H, W] in [0, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def row(name: str, percent: float, detail: str, bar: float | None) -> bool:
    """Print a line of the table; is the bar met?"""
    met = bar is None or percent >= bar
    wanted = "" if bar is None else f">= {bar:.0f} %   {'yes' if met else 'NO'}"
    print(f"| {name:<28} | {percent:6.1f} % | {detail:<11} | {wanted:<14} |")
    return met


def caption(prompt: Prompt, verdict: Verdict) -> str:
    """The prompt, and what is wrong in its picture."""
    wrong = [name for name in NAMES if getattr(verdict, name) is False]
    return prompt.text + (f" [not: {', '.join(wrong)}]" if wrong else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="pocket", help="name, folder or Hub repository")
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER)
    parser.add_argument("--split", default="heldout", choices=("heldout", "train"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--renders", type=int, default=512, help="fresh renders to check the classifier on")
    parser.add_argument("--out", type=Path, help="PNG for a contact sheet of the first pictures")
    parser.add_argument("--sheet", type=int, default=24, help="pictures on the sheet")
    options = parser.parse_args()

    classifier = load_classifier(options.classifier, options.device)
    pipe = calotype.load(options.model, device=options.device)
    pipe.set_progress_bar_config(disable=True)
    asked = prompts(options.split, options.count, options.seed)
    images = draw(pipe, asked, options)
    verdicts = judge(asked, read_pictures(classifier, as_tensor(images)))

    print(f"\n{options.count} {options.split} prompts, {options.steps} steps, guidance {options.guidance:g}")
    print(f"| {'':<28} | {'right':>8} | {'pictures':<11} | {'bar':<14} |")
    print(f"|{'-' * 30}|{'-' * 9}:|{'-' * 13}|{'-' * 16}|")
    good = True
    for name, (right, total) in shares(verdicts).items():
        if total:
            good &= row(NAMES[name], 100 * right / total, f"{right} of {total}", BARS[name])
    read = evaluate_classifier(classifier, options.renders)
    for name, bar in READER_BARS.items():
        good &= row(f"classifier on renders: {name}", 100 * read[name], f"{options.renders} scenes", bar)
    if options.out:
        n = min(options.sheet, len(images))
        texts = [caption(prompt, verdict) for prompt, verdict in zip(asked[:n], verdicts[:n], strict=True)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(images[:n], texts, columns=6, cell=192).save(options.out)
        print(f"contact sheet: {options.out}")
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CalotypeError as error:
        sys.exit(f"pocket_quality: {error}")
