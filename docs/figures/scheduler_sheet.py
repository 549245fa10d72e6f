"""docs/images/scheduler-sheet.webp: one prompt and one seed under a dozen schedulers, as many evaluations for each.

python docs/figures/scheduler_sheet.py [--model pocket] [--prompt TEXT] [--seed 7] [--evaluations 24]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import calotype
from calotype.schedulers.names import find
from calotype.utils import contact_sheet

NAMES = (
    "Euler", "Euler a", "Heun", "DPM2 Karras",
    "LMS Karras", "DDIM", "PLMS", "DPM++ 2M Karras",
    "DPM++ 2M SDE Karras", "DPM++ SDE Karras", "UniPC", "SA-Solver",
)  # fmt: skip
PROMPT = "a big shiny red ball to the left of a small blue cube on grass at sunset"


def main() -> None:
    folder = Path(__file__).resolve().parents[1] / "images"
    parser = argparse.ArgumentParser(description="Draw one prompt with a dozen schedulers.")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--output", type=Path, default=folder / "scheduler-sheet.webp")
    options = parser.parse_args()

    pipe = calotype.load(options.model)
    pipe.set_progress_bar_config(disable=True)
    trained = pipe.scheduler.config
    pictures, captions = [], []
    for name in NAMES:
        sampler = find(name).sampler
        steps = options.evaluations // (1 if sampler is None else sampler.evaluations)
        pipe.scheduler = calotype.Scheduler.named(name, trained)
        generator = torch.Generator("cpu").manual_seed(options.seed)
        pictures += pipe(options.prompt, num_inference_steps=steps, generator=generator).images
        captions.append(f"{name}, {steps} steps")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(pictures, captions, columns=4, cell=192)
    sheet.save(options.output, optimize=True, quality=88, method=6)
    print(options.output)


if __name__ == "__main__":
    main()
