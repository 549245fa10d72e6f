"""Schedulers exchanged and used in training, against the reference: from_config across classes, noising, velocities."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch

import calotype
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from tests.parity.deviations import deviation
from tests.parity.scheduler_oracle import oracle, without_layout
from tests.parity.scheduler_runs import difference

SAID: dict[str, dict[str, Any]] = {
    "EulerDiscreteScheduler": {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1},
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False, "beta_schedule": "scaled_linear"},
    "DDPMScheduler": {"variance_type": "fixed_large", "prediction_type": "v_prediction"},
    "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    "DEISMultistepScheduler": {"solver_type": "logrho", "algorithm_type": "deis"},
    "UniPCMultistepScheduler": {"solver_type": "bh1", "use_karras_sigmas": True},
    "LMSDiscreteScheduler": {"use_exponential_sigmas": True},
}
"""Options that a file of the class is likely to state; the others are taken with their defaults."""


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def exchanged(origin: Any, target: Any) -> Any:
    """The configuration after the exchange as it would be written, or None where the exchange is refused."""
    try:
        scheduler = target.from_config(origin.config)
    except (ValueError, NotImplementedError):
        return None
    entries = json.loads(scheduler.to_json_string())
    return {k: v for k, v in entries.items() if k != "_diffusers_version"}


@pytest.mark.parametrize("source", SIGNAL_NOISE_FAMILY)
def test_configurations_go_from_class_to_class(source: str) -> None:
    problems = []
    said = SAID.get(source, {})
    with without_layout():
        origins = [cls(**said) for cls in (getattr(calotype, source), oracle(source))]
    for target in SIGNAL_NOISE_FAMILY:
        ours = exchanged(origins[0], getattr(calotype, target))
        with without_layout():
            theirs = exchanged(origins[1], oracle(target))
        case = f"schedulers/from_config/{source}/{target}"
        if (ours == theirs) == (deviation(case) is not None):
            wrong = {
                k: (ours or {}).get(k, "-")
                for k in ours or {}
                if (theirs or {}).get(k, "-") != (ours or {})[k]
            }
            problems.append(
                f"{case}: ours {'refused' if ours is None else wrong}, theirs refused: {theirs is None}"
            )
    assert not problems, "\n".join(problems)


TRAINING = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
            "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
            "FlowMatchEulerDiscreteScheduler", "LCMScheduler", "TCDScheduler")  # fmt: skip


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
@pytest.mark.parametrize("name", TRAINING)
def test_noise_for_training(name: str, method: str) -> None:
    """Before any run, a batch of items at random steps of the training schedule."""
    ours, theirs = getattr(calotype, name)(), oracle(name)()
    if not hasattr(theirs, method):
        pytest.skip("the reference has no such method")
    x, noise = torch.randn(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    if method == "add_noise" and name == "FlowMatchEulerDiscreteScheduler":
        pytest.skip("flows have scale_noise")
    steps = (
        theirs.timesteps[torch.tensor([3, 400, 981])]
        if theirs.timesteps is not None
        else torch.tensor([3, 40, 9])
    )
    a, b = (getattr(s, method)(x, noise, steps) for s in (ours, theirs))
    case = f"schedulers/{name}/{method}"
    assert (difference(a, b) <= 1e-5) == (deviation(case) is None), f"{case}: {difference(a, b)}"
