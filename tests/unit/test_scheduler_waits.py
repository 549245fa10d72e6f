"""No step waits for the device: runs on the meta device, where reading any tensor's value is an error."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import calotype

OTHERWISE = {
    "AmusedScheduler": "unmasks tokens, another loop",
    "CogVideoXDPMScheduler": "its caller keeps two predictions, another loop",
    "CosineDPMSolverMultistepScheduler": "its noise is drawn by generators, which the meta device has none of",
    "DPMSolverSDEScheduler": "its noise is drawn by generators, which the meta device has none of",
    "KarrasVeScheduler": "its caller owns both evaluations, another loop",
    "RePaintScheduler": "needs an image and a mask, another loop",
    "ScoreSdeVeScheduler": "predicts and corrects, another loop",
    "VQDiffusionScheduler": "draws classes, another loop",
}
"""Schedulers that cannot be run by this test, and why."""

LAST_IS_THE_END = {"SCMScheduler", "DDPMWuerstchenScheduler"}
"""Their last timestep is where the run ends, not where a step begins."""

NAMES = sorted({n for n in calotype.__all__ if n.endswith("Scheduler")} - {"Scheduler"} - OTHERWISE.keys())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def run(scheduler: Any, timesteps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The steps, as a pipeline makes them."""
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(0)} if "generator" in takes else {}
    for t in list(timesteps)[: -1 if type(scheduler).__name__ in LAST_IS_THE_END else None]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.empty_like(x), t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("name", NAMES)
def test_a_run_reads_no_value_from_the_device(name: str) -> None:
    scheduler = getattr(calotype, name)()
    scheduler.set_timesteps(8, device="meta")
    x = run(scheduler, scheduler.timesteps, torch.empty(1, 4, 8, 8, device="meta"))
    assert x.device.type == "meta"


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(getattr(calotype, n), "set_begin_index")])
def test_a_run_from_the_middle_reads_no_value_from_the_device(name: str) -> None:
    """As image-to-image begins: noise for one of the timesteps, then the steps from there."""
    scheduler = getattr(calotype, name)()
    scheduler.set_timesteps(8, device="meta")
    scheduler.set_begin_index(3 * scheduler.order)
    rest = scheduler.timesteps[3 * scheduler.order :]
    x = torch.empty(2, 4, 8, 8, device="meta")
    if hasattr(scheduler, "add_noise"):
        x = scheduler.add_noise(x, torch.empty_like(x), rest[:1].repeat(2))
    assert run(scheduler, rest, x).device.type == "meta"


def test_the_meta_device_refuses_to_be_read() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty((), device="meta").item()


def test_exceptions_exist() -> None:
    assert set(calotype.__all__) >= OTHERWISE.keys() | LAST_IS_THE_END
