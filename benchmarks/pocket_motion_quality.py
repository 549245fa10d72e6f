"""Do the pocket model's clips move as they are asked to, in combinations that it never saw?

    python -m benchmarks.pocket_motion_quality [--adapter FOLDER] [--base FOLDER] [--count 100] [--steps 20]
                                               [--guidance 5] [--device cpu] [--out motion.png]

Prompts name combinations of motion, shape and colour that were left out of training. A classifier that only ever saw
rendered scenes follows the main object; it has to follow it in rendered clips first. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import calotype
from benchmarks.pocket_quality import CLASSIFIER, as_tensor
from calotype.core.errors import CalotypeError
from calotype.pipelines.load import load_moving
from calotype.pocket.classifier import load_classifier, read_pictures
from calotype.pocket.motion import FRAMES
from calotype.pocket.motion_judging import JUDGED, MotionPrompt, MotionVerdict, judge_motion, motion_prompts
from calotype.pocket.renderer import render
from calotype.training.sheets import write_sheet

BARS = {"direction": 85.0, "color": 90.0}
"""Percent of the generated clips that must be right."""
READER_BAR = 98.0
"""Percent of rendered clips whose motion must be read rightly."""
_SHOWN = 8


def draw(pipe: Any, asked: list[MotionPrompt], options: argparse.Namespace) -> torch.Tensor:
    """Clips [B, F, 3, H, W]; each has a seed of its own."""
    clips = []
    start = time.perf_counter()
    for first in range(0, len(asked), options.batch):
        part = asked[first : first + options.batch]
        seeds = range(options.seed + first, options.seed + first + len(part))
        frames = pipe(
            [prompt.text for prompt in part],
            num_frames=FRAMES,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).frames
        clips += [as_tensor(list(clip)) for clip in frames]
        print(f"\r{len(clips)}/{len(asked)} clips", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    print(f"\r{len(clips)} clips, {seconds / len(clips):.2f} s each", file=sys.stderr)
    return torch.stack(clips)


def percent(values: Sequence[bool]) -> float:
    return 100 * sum(values) / max(1, len(values))


def row(name: str, values: Sequence[bool], bar: float | None = None) -> bool:
    """Print a line of the table; is the bar met?"""
    met = bar is None or percent(values) >= bar
    wanted = "" if bar is None else f">= {bar:.0f} %   {'yes' if met else 'NO'}"
    print(
        f"| {name:<36} | {percent(values):6.1f} % | {f'{sum(values)} of {len(values)}':<11} | {wanted:<14} |"
    )
    return met


def by_motion(prompts: list[MotionPrompt], verdicts: list[MotionVerdict], what: str) -> None:
    for name in JUDGED:
        values = [v.direction for p, v in zip(prompts, verdicts, strict=True) if p.motion == name]
        if values:
            row(f"  {what}: {name.replace('_', ' ')}", values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--adapter", type=Path, help="folder of an adapter, if not the bundled one")
    parser.add_argument("--base", type=Path, help="folder of the checkpoint that --adapter is for")
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--renders", type=int, default=120, help="rendered clips to check the judge on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="PNG for a sheet of the first clips")
    options = parser.parse_args()

    classifier = load_classifier(options.classifier, options.device)
    good = True
    print(f"| {'':<36} | {'right':>8} | {'clips':<11} | {'bar':<14} |")
    print(f"|{'-' * 38}|{'-' * 9}:|{'-' * 13}|{'-' * 16}|")
    if options.renders:
        shown, moving = motion_prompts(options.renders, options.seed + 1_000_003)
        pictures = render(moving.frames(FRAMES).to(options.device)).rgb
        verdicts = judge_motion(shown, read_pictures(classifier, pictures), FRAMES)
        by_motion(shown, verdicts, "judge on renders")
        good &= row("judge on renders: direction", [v.direction for v in verdicts], READER_BAR)
        good &= row("judge on renders: colour", [v.color for v in verdicts], READER_BAR)
    if options.count:
        if options.adapter is None:
            pipe = calotype.load("pocket-motion", device=options.device)
        else:
            pipe = load_moving(options.base or "pocket", options.adapter, device=options.device)
        pipe.set_progress_bar_config(disable=True)
        asked, _ = motion_prompts(options.count, options.seed)
        clips = draw(pipe, asked, options)
        verdicts = judge_motion(asked, read_pictures(classifier, clips.flatten(0, 1)), FRAMES)
        by_motion(asked, verdicts, "direction")
        good &= row("direction of motion", [v.direction for v in verdicts], BARS["direction"])
        good &= row("colour stays", [v.color for v in verdicts], BARS["color"])
        if options.out:
            count = min(16, len(clips))
            index = torch.linspace(0, FRAMES - 1, _SHOWN).round().long()
            texts = []
            for prompt, verdict in zip(asked[:count], verdicts[:count], strict=True):
                texts += [
                    prompt.text,
                    "" if verdict.direction else "[direction]",
                    "" if verdict.color else "[colour]",
                ]
                texts += [""] * (_SHOWN - 3)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_sheet(options.out, clips[:count, index].flatten(0, 1), texts, columns=_SHOWN)
            print(f"sheet: {options.out}")
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CalotypeError as error:
        sys.exit(f"pocket_motion_quality: {error}")
