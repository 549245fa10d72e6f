"""On CUDA a step never waits for the device: the loop runs where any synchronisation is an error."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import calotype

NAMES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "CosineDPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)


def loop(scheduler: Any, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """One run over a network that costs nothing; what happens before the first step may wait."""
    scheduler.set_timesteps(steps, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(1, 4, 64, 64, device="cuda", generator=generator).to(dtype)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in takes else {}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in scheduler.timesteps:
            x = scheduler.step(0.5 * scheduler.scale_model_input(x, t), t, x, **extra).prev_sample
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return x


def kernels(scheduler: Any, steps: int, dtype: torch.dtype) -> float:
    """Kernels and copies of a step on the device, without the stand-in for the network."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        loop(scheduler, steps, dtype)
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    count = sum(event.device_type == on_device for event in profile.events())
    return count / len(scheduler.timesteps) - 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_device(name: str, dtype: torch.dtype) -> None:
    assert loop(getattr(calotype, name)(), 8, dtype).isfinite().all()


if __name__ == "__main__":
    for name in NAMES:
        for dtype in (torch.float32, torch.bfloat16):
            try:
                loop(getattr(calotype, name)(), 8, dtype)
                count = kernels(getattr(calotype, name)(), 24, dtype)
                print(f"{name:40s} {dtype!s:15s} no waiting, {count:.1f} kernels a step")
            except Exception as error:
                print(f"{name:40s} {dtype!s:15s} {type(error).__name__}: {error!s:.200}")
