"""What is used by name: the time of each option, and how far its pictures are from the exact ones, in one run.

    python -m benchmarks.options [--rounds 3] [--steps 20] [--prompts 3] [--threads 2] [--device cpu] [--seconds 600]
                                 [--only WORDS] [--large sd15,sdxl]

The bundled ``pocket`` makes a picture of each prompt with each option; times are medians (on a CPU of the processor's
time in all threads, beside an exact call each time). The distance is the signal-to-noise ratio between the pictures and
those without options (PSNR in dB, the mean and the worst of the prompts; 30 is hardly seen, 20 another picture of the
same). On a GPU, models of the size of Stable Diffusion 1.5 and XL with random weights in bfloat16 follow (``--large``),
whose distances are relative errors of their latents.
``--only`` leaves out the options in whose names none of the words, separated by commas, occurs.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import calotype
from benchmarks._gpu.sizes import FULL
from benchmarks._gpu.stock import Stock
from benchmarks._side_by_side import machine
from calotype.acceleration import Options, StepCache
from calotype.core.errors import InputError
from calotype.guidance import ClassifierFree, Interval, NoiseInterval

PROMPTS = (
    "a big shiny red ball to the left of a small blue cube on grass at sunset",
    "a shiny yellow torus on a wooden floor by day",
    "a green cone next to a purple cylinder on snow under a cloudy sky",
    "a small orange ball on sand at night",
)
SCALE = 5.0
EXACT = "exact"


@dataclass(frozen=True)
class Setting:
    """How a pipeline's call differs from the exact one: its options, its guidance, the type or layout of its UNet."""

    options: Options = field(default_factory=Options)
    guidance: Any = None
    dtype: torch.dtype | None = None
    channels_last: bool = False


def cached(interval: int, branch: int, **more: Any) -> Setting:
    return Setting(Options(step_cache=StepCache(interval, branch), **more))


SETTINGS: dict[str, Setting] = {
    EXACT: Setting(),
    "step cache, interval 2, branch 0": cached(2, 0),
    "step cache, interval 2, branch 3": cached(2, 3),
    "step cache, interval 3, branch 0": cached(3, 0),
    "step cache, interval 3, branch 3": cached(3, 3),
    "step cache, interval 5, branch 0": cached(5, 0),
    "guidance in steps 0 to 50 %": Setting(guidance=Interval(ClassifierFree(SCALE), 0.0, 0.5)),
    "guidance in steps 20 to 80 %": Setting(guidance=Interval(ClassifierFree(SCALE), 0.2, 0.8)),
    "guidance at noise 0.3 to 5.5": Setting(guidance=NoiseInterval(ClassifierFree(SCALE), 0.3, 5.5)),
    "linears int8": Setting(Options(linears="int8")),
    "linears fp8": Setting(Options(linears="fp8")),
    "step cache 3, branch 0, int8": cached(3, 0, linears="int8"),
    "float32, channels-last": Setting(channels_last=True),
    "bfloat16": Setting(dtype=torch.bfloat16),
}


def psnr(found: torch.Tensor, right: torch.Tensor) -> float:
    """In dB, of pictures in [0, 1]; infinite for equal ones."""
    return float(-10 * (found - right).square().mean().clamp(min=1e-12).log10())


def waited(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], device: str) -> float:
    """The time of a call; on a CPU the processor's own, which others do not lengthen much."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    waited(device)
    start = clock()
    function()
    waited(device)
    return clock() - start


@dataclass
class Measured:
    """The times of an option, how many times quicker than the exact calls beside them each was, and the results."""

    times: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    refused: str = ""

    @property
    def line(self) -> str:
        """The medians."""
        return f"{statistics.median(self.times):8.3f} {statistics.median(self.gains):5.2f}x"


def measured(
    names: list[str], make: Callable[[str, int], Any], prompts: int, rounds: int, device: str, seconds: float
) -> dict[str, Measured]:
    """Times and results of each option, results for each prompt.

    On a CPU an exact call comes before each other one. On a GPU they come one after the other, since a model keeps what
    was captured of it for two options only.
    """
    until = time.perf_counter() + seconds
    found = {name: Measured() for name in names}
    in_turn = device != "cuda"
    for name, one in found.items():  # what is captured or set up is no part of the times
        try:
            one.results = [make(name, prompt) for prompt in range(prompts)]
        except InputError as error:
            one.refused = str(error).splitlines()[0]
            continue
        if not in_turn:
            make(name, 0)
            one.times = [timed(lambda name=name: make(name, 0), device) for _ in range(rounds)]
            one.gains = [statistics.median(found[EXACT].times) / now for now in one.times]
    for turn in range(rounds if in_turn else 0):
        for name, one in found.items():
            if not one.refused and (turn == 0 or time.perf_counter() < until):
                exact = timed(lambda: make(EXACT, 0), device)
                one.times.append(timed(lambda name=name: make(name, 0), device))
                one.gains.append(exact / one.times[-1])
    return found


def pocket(arguments: argparse.Namespace, names: list[str]) -> None:
    """The table of the bundled model."""
    made: dict[tuple[Any, bool], Any] = {}

    def pipe_of(setting: Setting) -> Any:
        key = setting.dtype, setting.channels_last
        if key not in made:
            pipe = calotype.load("pocket", device=arguments.device)
            pipe.set_progress_bar_config(disable=True)
            if setting.dtype is not None:
                pipe.to(setting.dtype)
            if setting.channels_last:
                pipe.unet.to(memory_format=torch.channels_last)
                pipe.vae.to(memory_format=torch.channels_last)
            made[key] = pipe
        return made[key]

    def make(name: str, prompt: int) -> torch.Tensor:
        setting = SETTINGS[name]
        pipe = pipe_of(setting)
        pipe.acceleration = setting.options
        images = pipe(
            PROMPTS[prompt],
            num_inference_steps=arguments.steps,
            generator=torch.Generator().manual_seed(7 + prompt),
            output_type="pt",
            guidance=ClassifierFree(SCALE) if setting.guidance is None else setting.guidance,
        ).images
        return images.float().cpu()

    if arguments.device == "cuda":
        names = [name for name in names if not SETTINGS[name].channels_last]
    found = measured(names, make, arguments.prompts, arguments.rounds, arguments.device, arguments.seconds)
    print(f"\npocket, 128 x 128, {arguments.steps} steps, {arguments.device}")
    print(f"{'':36s} {'seconds':>8s} {'faster':>6s}   {'PSNR, mean':>10s} {'worst':>6s}")
    for name, one in found.items():
        if one.refused:
            print(f"{name:36s} refused: {one.refused}")
            continue
        far = [psnr(*pair) for pair in zip(one.results, found[EXACT].results, strict=True)]
        said = "rounding" if min(far) > 100 else f"{statistics.mean(far):10.1f} {min(far):6.1f}"
        print(f"{name:36s} {one.line}   {said:>10s}")


def large(which: str, arguments: argparse.Namespace, names: list[str]) -> None:
    """The table of a model of full size with random weights, on a GPU."""
    xl = which == "sdxl"
    side, steps = (1024, 30) if xl else (512, 50)
    stock = Stock({"calotype": calotype}, FULL, torch.device("cuda"), torch.bfloat16)
    pipe = stock.pipeline("calotype", xl, "euler")

    def make(name: str, prompt: int) -> torch.Tensor:
        setting = SETTINGS[name]
        pipe.acceleration = setting.options
        found = pipe(
            PROMPTS[prompt],
            num_inference_steps=steps,
            height=side,
            width=side,
            generator=torch.Generator("cuda").manual_seed(7),
            output_type="latent",
            guidance=ClassifierFree(SCALE) if setting.guidance is None else setting.guidance,
        ).images
        return found.float()

    names = [name for name in names if not SETTINGS[name].channels_last and SETTINGS[name].dtype is None]
    found = measured(names, make, 1, arguments.rounds, "cuda", arguments.seconds)
    print(f"\n{which} of random weights in bfloat16, {side} x {side}, {steps} steps, latents, cuda")
    print(f"{'':36s} {'seconds':>8s} {'faster':>6s}   {'relative error':>14s}")
    right = found[EXACT].results[0]
    for name, one in found.items():
        if one.refused:
            print(f"{name:36s} refused: {one.refused}")
            continue
        far = float((one.results[0] - right).norm() / right.norm())
        print(f"{name:36s} {one.line}   {far:14.2e}")
    print(pipe.acceleration.report())


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time what is used by name, and measure how far results are."
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each option is measured")
    parser.add_argument("--steps", type=int, default=20, help="steps of the bundled model")
    parser.add_argument("--prompts", type=int, default=3, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=600, help="after which no further turns are taken")
    parser.add_argument("--only", default="", help="words in the names of options, separated by commas")
    parser.add_argument("--large", default="sd15,sdxl", help="models of full size that follow on a GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    words = [word for word in arguments.only.split(",") if word]
    names = [name for name in SETTINGS if name == EXACT or not words or any(word in name for word in words)]
    pocket(arguments, names)
    if arguments.device == "cuda":
        for which in filter(None, arguments.large.split(",")):
            large(which, arguments, names)
            gc.collect()
            torch.cuda.empty_cache()
        print(f"\n{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    print(f"{machine(arguments.threads)}, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
