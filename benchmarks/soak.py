"""Many generations one after another in one process: whether memory stays flat.

python -m benchmarks.soak                 # 500 with the bundled model
python -m benchmarks.soak --count 100

Prompts, seeds, sizes, counts and tasks change from call to call, pipelines are made for tasks and dropped, and one call
in ten is ended by its callback. After the first 100 calls the resident memory may grow by 20 MB in 500 calls, by the
slope of a line through what was measured after each; the exit status is 1 if it grows by more.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "a red ball",
    "two blue cubes on grass",
    "a small cone at night",
    "",
    "a green ball left of a cube " * 20,
)
SIZES = ((64, 64), (64, 96), (96, 64), (128, 128))
WARM = 100
ALLOWED = 20e6 / 500  # bytes a call


def resident() -> int:
    """The memory of this process in RAM, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


def arguments_for(chance: random.Random) -> dict[str, Any]:
    """The arguments of one call: text alone, a picture, or a picture and a mask."""
    height, width = chance.choice(SIZES)
    arguments: dict[str, Any] = {
        "prompt": [chance.choice(WORDS)] * chance.choice((1, 1, 2)),
        "num_inference_steps": chance.choice((2, 3, 4)),
        "guidance_scale": chance.choice((1.0, 5.0)),
        "generator": torch.Generator().manual_seed(chance.randrange(2**31)),
        "output_type": chance.choice(("pil", "pt", "np")),
    }
    task = chance.choice(("text", "picture", "mask"))
    if task == "text":
        return {**arguments, "height": height, "width": width}
    arguments |= {"image": torch.rand(1, 3, height, width), "strength": chance.choice((0.7, 1.0))}
    return arguments if task == "picture" else {**arguments, "mask_image": torch.rand(1, 1, height, width)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="generations, 200 or more")
    parser.add_argument("--model", default="pocket")
    options = parser.parse_args()
    if options.count < 2 * WARM:
        parser.error(f"--count must be {2 * WARM} or more: memory is compared after the first {WARM} calls")

    import calotype
    from calotype.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    chance = random.Random(0)
    pipe = calotype.load(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def end(running: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        running._interrupt = True
        return {}

    seen, start = [], time.perf_counter()
    print(f"{'calls':>6} {'resident':>12} {'seconds':>8}")
    for call in range(1, options.count + 1):
        arguments = arguments_for(chance)
        if call % 10 == 0:
            arguments["callback_on_step_end"] = end
        if call % 25 == 0:
            other = calotype.AutoPipelineForImage2Image.from_pipe(pipe)
            other.set_progress_bar_config(disable=True)
            other("a ball", image=torch.rand(1, 3, 64, 64), num_inference_steps=2, output_type="pt")
            del other
        pipe(**arguments)
        gc.collect()
        seen.append(resident())
        if call % 50 == 0:
            print(f"{call:>6} {seen[-1] / 1e6:>9.1f} MB {time.perf_counter() - start:>8.1f}", flush=True)
    slope = statistics.linear_regression(range(len(seen) - WARM), seen[WARM:]).slope
    print(
        f"{slope / 1e3:+.2f} kB a call after the first {WARM}, {slope * 500 / 1e6:+.1f} MB in 500; allowed are 20 MB"
    )
    return int(slope > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
