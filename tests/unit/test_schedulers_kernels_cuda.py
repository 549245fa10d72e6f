"""On CUDA with Triton a step is one or two kernels, and one more where noise is drawn; results are those of the CPU.

`python -m tests.unit.test_schedulers_kernels_cuda` prints the table: kernels a step and microseconds a step, with
the sums of a step in one kernel and one after the other.
"""

from __future__ import annotations

import inspect
import logging
import time
from typing import Any

import pytest
import torch

import calotype
from calotype.schedulers import affine

DRAWS = {
    "DDPMScheduler": {"clip_sample": False},
    "EulerAncestralDiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "SASolverScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "CMStochasticIterativeScheduler": {},
    "FlowMatchLCMScheduler": {},
}
"""Classes whose steps draw noise, with options."""

DETERMINISTIC = {
    "DDIMScheduler": {},
    "DDIMInverseScheduler": {},
    "CogVideoXDDIMScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "IPNDMScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepInverseScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "EDMEulerScheduler": {},
    "EDMDPMSolverMultistepScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
}
CASES = {**DETERMINISTIC, **DRAWS}
STEPS = 6
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or affine.kernels() is None, reason="needs a CUDA device and Triton"
)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def run(name: str, device: str, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """A whole run whose network's outputs are known beforehand, so that only the steps cost anything."""
    scheduler = getattr(calotype, name)(**CASES[name])
    scheduler.set_timesteps(STEPS, device=device)
    source = torch.Generator().manual_seed(1)
    outputs = [torch.randn(1, 4, 64, 64, generator=source).to(device, dtype) for _ in scheduler.timesteps]
    x = torch.randn(1, 4, 64, 64, generator=source).to(device, dtype)
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scheduler.scale_model_input(x, scheduler.timesteps[0]) if hasattr(
        scheduler, "scale_model_input"
    ) else None
    for output, t in zip(outputs, scheduler.timesteps, strict=True):
        x = scheduler.step(output, t, x, **extra, return_dict=False)[0]
    return x


def counted(name: str, dtype: torch.dtype) -> float:
    """Kernels and copies of a step on the device."""
    scheduler = getattr(calotype, name)(**CASES[name])
    scheduler.set_timesteps(STEPS, device="cuda")
    generator = torch.Generator("cuda").manual_seed(1)
    x, output = (torch.randn(1, 4, 64, 64, device="cuda").to(dtype) for _ in range(2))
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scheduler.scale_model_input(x, scheduler.timesteps[0]) if hasattr(
        scheduler, "scale_model_input"
    ) else None
    timesteps = list(scheduler.timesteps)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for t in timesteps:
            x = scheduler.step(output, t, x, **extra, return_dict=False)[0]
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_device for event in profile.events()) / len(timesteps)


def microseconds(name: str) -> float:
    """A step's time from the host's start to the device's end, the best of three runs."""
    taken = []
    for _ in range(3):
        scheduler = getattr(calotype, name)(**CASES[name])
        scheduler.set_timesteps(25, device="cuda")
        x, output = (torch.randn(1, 4, 128, 128, device="cuda") for _ in range(2))
        timesteps = list(scheduler.timesteps)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for t in timesteps:
            x = scheduler.step(output, t, x, return_dict=False)[0]
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / len(timesteps))
    return 1e6 * min(taken)


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_one_or_two_kernels(name: str) -> None:
    run(name, "cuda", torch.float32, torch.Generator().manual_seed(5))  # compiles
    assert counted(name, torch.float32) <= (3 if name in DRAWS else 2)


@pytest.mark.parametrize("name", CASES)
def test_the_results_are_those_of_the_cpu(name: str) -> None:
    found, expected = (
        run(name, device, torch.float32, torch.Generator().manual_seed(5)) for device in ("cuda", "cpu")
    )
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.cpu() / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_steps_of_half_precision(name: str) -> None:
    """Conversions are part of the kernel; the result is within roundings of bfloat16 of that of the CPU.

    Single elements, where a step subtracts much of what the one before added, may be a tenth of the largest apart.
    """
    found, expected = (
        run(name, device, torch.bfloat16, torch.Generator().manual_seed(5)) for device in ("cuda", "cpu")
    )
    assert found.dtype == expected.dtype
    apart = found.cpu().float() - expected.float()
    assert apart.square().mean().sqrt() < 0.02 * expected.float().abs().max()
    assert counted(name, torch.bfloat16) <= 2


def table() -> None:
    """Kernels and microseconds a step, together and one after the other."""
    logging.disable(logging.WARNING)
    fused = affine.kernels
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print(f"{'a step':38s} {'kernels':>16s} {'µs, 1x4x128x128':>20s}")
    for name in CASES:
        found = []
        for kernels in (lambda: None, fused):
            affine.kernels = kernels  # type: ignore[assignment]
            run(name, "cuda", torch.float32, torch.Generator().manual_seed(5))
            found.append((counted(name, torch.float32), microseconds(name)))
        (before, slow), (after, quick) = found
        print(f"{name:38s} {before:7.1f} -> {after:4.1f} {slow:10.1f} -> {quick:5.1f}", flush=True)


if __name__ == "__main__":
    table()
