"""What a scheduler's step costs: the common ten, beside the reference, in one process, in turn.

    python -m benchmarks.schedulers [--rounds 40] [--steps 25] [--device cuda]

Timed is what a loop spends outside the network: ``scale_model_input`` and ``step``, in microseconds a step, the median
over all steps of all rounds. The libraries take turns round by round, so that the machine's moods meet both alike.

Prediction, written before measuring: a step is one to three passes over the sample. At 1x4x64x64 (64 KiB) a pass
takes 2 to 4 µs, most of that PyTorch's cost for a call, and Python costs 10 to 20 µs: 15 to 40 µs in all, where the
reference, which computes its coefficients as tensors, takes 80 to 500 µs. At 1x4x128x128 (256 KiB) passes take 10 to
20 µs, and the libraries draw nearer to each other. Where noise is drawn, drawing it (20 to 250 µs) is the same for both
and most of the step, so Euler a, DDPM and DPM++ 2M SDE gain least.

On CUDA (``--device cuda``) the loop runs under ``torch.cuda.set_sync_debug_mode("error")``, where any waiting for the
device is an error, and the profiler counts the kernels of a step; the reference's loop is only counted.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks._side_by_side import LIBRARIES, Row, machine, median, print_table

SIDES = (64, 128)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BAR = 0.5
"""Our median step may take at most this share of the reference's, over the common ten."""


@dataclass(frozen=True)
class Candidate:
    """One scheduler as it is used with Stable Diffusion."""

    name: str
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)


COMMON = (
    Candidate("Euler", "EulerDiscreteScheduler"),
    Candidate("Euler a", "EulerAncestralDiscreteScheduler"),
    Candidate("DDIM", "DDIMScheduler", {"clip_sample": False}),
    Candidate("DDPM", "DDPMScheduler", {"clip_sample": False}),
    Candidate("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
    Candidate("LMS", "LMSDiscreteScheduler"),
    Candidate("Heun", "HeunDiscreteScheduler"),
    Candidate("DPM++ 2M", "DPMSolverMultistepScheduler"),
    Candidate("DPM++ 2M SDE", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Candidate("UniPC", "UniPCMultistepScheduler"),
)


class Loop:
    """A scheduler with a sample and a network output of the same shape: what one image's run needs."""

    def __init__(self, library: str, candidate: Candidate, side: int, steps: int, device: str) -> None:
        cls = getattr(__import__(library), candidate.scheduler)
        self.scheduler = cls(**SD, **candidate.options)
        self.steps, self.device = steps, device
        self.generator = torch.Generator(device).manual_seed(0)
        self.sample = torch.randn(1, 4, side, side, generator=self.generator, device=device)
        self.output = torch.randn(1, 4, side, side, generator=self.generator, device=device)
        takes = inspect.signature(self.scheduler.step).parameters
        self.extra = {"generator": self.generator} if "generator" in takes else {}

    def begin(self) -> list[torch.Tensor]:
        """Begin a run, and the timesteps as a caller's loop meets them."""
        self.scheduler.set_timesteps(self.steps, device=self.device)
        return list(self.scheduler.timesteps)

    def step(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What a pipeline calls at each step."""
        self.scheduler.scale_model_input(x, t)
        return self.scheduler.step(self.output, t, x, **self.extra, return_dict=False)[0]

    def run(self) -> torch.Tensor:
        """All steps."""
        x = self.sample
        for t in self.begin():
            x = self.step(t, x)
        return x

    def timed(self) -> list[float]:
        """All steps, the seconds that each took."""
        x, seconds = self.sample, []
        for t in self.begin():
            start = time.perf_counter()
            x = self.step(t, x)
            seconds.append(time.perf_counter() - start)
        return seconds


def on_cpu(rounds: int, steps: int) -> bool:
    """The table of step times on one thread; whether the median ratio meets the bar."""
    torch.set_num_threads(1)
    rows = []
    for side in SIDES:
        for candidate in COMMON:
            loops = {library: Loop(library, candidate, side, steps, "cpu") for library in LIBRARIES}
            seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
            for turn in range(rounds + 2):
                for library in LIBRARIES:
                    taken = loops[library].timed()
                    seconds[library] += taken if turn >= 2 else []  # two rounds warm caches and allocator
            reference, ours = (1e6 * median(seconds[library]) for library in LIBRARIES)
            rows.append(Row(f"{candidate.name}, 1x4x{side}x{side}", reference, ours, "µs"))
    shares = {
        side: median([r.calotype / r.reference for r in rows if r.what.endswith(f"x{side}")])
        for side in SIDES
    }
    share = median([row.calotype / row.reference for row in rows])
    share_of = "calotype's median step takes {:.2f} of the reference's"
    notes = [
        f"median of {rounds} rounds of {steps} steps, in turn; {machine(1)}",
        *(f"1x4x{side}x{side}: {share_of.format(found)}" for side, found in shares.items()),
        f"both: {share:.2f}, wanted at most {BAR}: {'met' if share <= BAR else 'MISSED'}",
    ]  # fmt: skip
    print_table("scheduler steps", rows, notes)
    return share <= BAR


def kernels(loop: Loop) -> float:
    """Kernels and copies that the device runs for a step, counted over a whole run."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    ts, x = loop.begin(), loop.sample
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for t in ts:
            x = loop.step(t, x)
        torch.cuda.synchronize()
    launched = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    return len(launched) / len(ts)


def waits(loop: Loop) -> str:
    """ "none" if the run never waits for the device; otherwise the first line of the error that says where."""
    ts, x = loop.begin(), loop.sample
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in ts:
            x = loop.step(t, x)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return "none"


def queued(loop: Loop, rounds: int) -> float:
    """Seconds a step from the host's start to the device's end, over whole runs."""
    taken = []
    for _ in range(rounds):
        ts, x = loop.begin(), loop.sample
        torch.cuda.synchronize()
        start = time.perf_counter()
        for t in ts:
            x = loop.step(t, x)
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / len(ts))
    return statistics.median(taken)


def on_cuda(rounds: int, steps: int) -> bool:
    """Kernels, waiting and step times on the GPU; whether no scheduler of ours waits for it."""
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device on this machine.")
    free, timings, counts = True, [], []
    for candidate in COMMON:
        ours, reference = (Loop(name, candidate, 128, steps, "cuda") for name in ("calotype", "diffusers"))
        for loop in (ours, reference):
            loop.run()
        verdict = waits(ours)
        free &= verdict == "none"
        counts.append((candidate.name, kernels(reference), kernels(ours), verdict))
        timings.append(Row(candidate.name, 1e6 * queued(reference, rounds), 1e6 * queued(ours, rounds), "µs"))
    print_table("scheduler steps on CUDA, 1x4x128x128", timings, [torch.cuda.get_device_name()])
    print(f"\n{'kernels a step':<16}  {'reference':>9}  {'calotype':>9}  waiting for the device")
    for name, theirs, mine, verdict in counts:
        print(f"{name:<16}  {theirs:>9.1f}  {mine:>9.1f}  {verdict}")
    return free


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the steps of schedulers beside the reference's.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    run = on_cuda if options.device == "cuda" else on_cpu
    return 0 if run(options.rounds, options.steps) else 1


if __name__ == "__main__":
    raise SystemExit(main())
