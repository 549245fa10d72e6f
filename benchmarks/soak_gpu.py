"""A thousand accelerated generations on a GPU: memory stays flat, nothing is captured again, pictures are right.

python -m benchmarks.soak_gpu                 # 1,000 with the bundled model
python -m benchmarks.soak_gpu --count 200

Prompts, seeds, guidance, three shapes, and the strengths of two LoRAs change from call to call, at times in the middle
of one. Each picture is compared with the one that the same models make without acceleration. The exit status is 1 if

- the memory that PyTorch holds on the device grows by more than 20 MB after the first 100 calls,
- the UNet is captured more often than there are shapes, or anything is computed without a capture, or
- a picture in float32 differs from the plain one by more than 0.02 of full scale in the mean (bfloat16: 0.05).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import Any

import torch

WORDS = (
    "a red ball on grass",
    "two blue cubes on snow",
    "a yellow cone at night",
    "",
    "a green heart on wood",
)
SHAPES = ((128, 128, 1), (96, 128, 1), (128, 128, 2))
"""Height, width, and how many pictures."""
ADAPTERS = {"turbo": "pocket-turbo", "heart": "pocket-lora-heart"}
WARM = 100
LIMITS = {torch.float32: 0.02, torch.bfloat16: 0.05}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="generations, more than 100")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    if options.count <= WARM:
        parser.error(f"--count must be more than {WARM}: memory is compared after the first {WARM} calls")
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA device")

    import calotype
    from calotype.acceleration.accelerated import runner_of
    from calotype.pipelines.bundled import FOLDER

    chance, dtype = random.Random(0), getattr(torch, options.dtype)
    fast: Any = calotype.load("pocket", device="cuda", torch_dtype=dtype)
    for name, folder in ADAPTERS.items():
        fast.load_lora_weights(FOLDER / folder, adapter_name=name)
    plain: Any = type(fast)(**fast.components)
    plain.acceleration = None
    for pipe in (fast, plain):
        pipe.set_progress_bar_config(disable=True)

    def strengths() -> list[float]:
        return [chance.choice((0.0, 0.3, 1.0)), chance.random()]

    mean, largest, held, seconds = 0.0, 0.0, 0, {"fast": 0.0, "plain": 0.0}
    print(f"{'calls':>6} {'held':>10} {'captured':>9} {'largest difference':>19} {'fast':>8} {'plain':>8}")
    for call in range(1, options.count + 1):
        height, width, count = SHAPES[call % len(SHAPES)]
        first, later = strengths(), strengths()
        arguments = {
            "prompt": chance.choice(WORDS), "height": height, "width": width, "num_images_per_prompt": count,
            "num_inference_steps": options.steps, "guidance_scale": 1.5 + 5 * chance.random(),
            "cross_attention_kwargs": {"scale": chance.choice((1.0, 0.5))}, "output_type": "pt",
        }  # fmt: skip
        seed = chance.randrange(2**31)

        def change(
            running: Any, index: int, timestep: Any, tensors: Any, to: list[float] = later
        ) -> dict[str, Any]:
            if index == 1:
                running.set_adapters(list(ADAPTERS), to)
            return {}

        if call % 10 == 0:
            arguments["callback_on_step_end"] = change
        pictures = {}
        for name, pipe in (("fast", fast), ("plain", plain)):
            pipe.set_adapters(list(ADAPTERS), first)
            torch.cuda.synchronize()
            since = time.perf_counter()
            pictures[name] = pipe(**arguments, generator=torch.Generator("cuda").manual_seed(seed)).images
            torch.cuda.synchronize()
            seconds[name] += time.perf_counter() - since
        difference = float((pictures["fast"] - pictures["plain"]).abs().mean())
        mean, largest = mean + difference / options.count, max(largest, difference)
        if call == WARM:
            held = torch.cuda.memory_reserved()
        if call % WARM == 0:
            kept = runner_of(fast.unet, fast.acceleration.options).captures["__call__"]
            print(
                f"{call:>6} {torch.cuda.memory_reserved() / 1e6:>7.1f} MB {kept.count:>9} {largest:>19.5f} "
                f"{seconds['fast']:>6.1f} s {seconds['plain']:>6.1f} s",
                flush=True,
            )
    grown, report = torch.cuda.memory_reserved() - held, fast.acceleration.report()
    print(f"mean difference {mean:.6f}; memory after the first {WARM} calls {grown / 1e6:+.1f} MB\n{report}")
    return int(
        grown > 20e6 or kept.count > len(SHAPES) or "plain" in report or "not captured" in report
        or largest > LIMITS[dtype]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
