"""Setting a scheduler up for one run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import PictureGenerators
from calotype.core.signatures import argument_names
from calotype.diffusion.inputs import Noise, Span, Steps
from calotype.diffusion.tasks.task import Path

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.tasks.task import Task


def set_timesteps(
    scheduler: Any, steps: Steps, device: torch.device, more: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """Start a run of the scheduler; the whole of its schedule, on ``device``. ``more`` goes to the scheduler as it is.

    Raises ``InputError`` when custom timesteps or sigmas are given to a scheduler that takes none.
    """
    custom = {name: value for name in ("timesteps", "sigmas") if (value := getattr(steps, name)) is not None}
    takes = argument_names(scheduler.set_timesteps)
    for name in custom:
        if name not in takes:
            raise InputError(
                f"{type(scheduler).__name__} takes no custom {name}; give num_inference_steps instead, or use a "
                f"scheduler that does, such as EulerDiscreteScheduler."
            )
    if custom:
        scheduler.set_timesteps(device=device, **custom, **more)
        return Path(scheduler.timesteps, len(scheduler.timesteps))
    scheduler.set_timesteps(steps.num_inference_steps, device=device, **more)
    return Path(scheduler.timesteps, steps.num_inference_steps)


def until_end(scheduler: Any, path: Path, span: Span) -> Path:
    """A schedule as far as ``denoising_end``."""
    if not span.ends:
        return path
    total = scheduler.config.num_train_timesteps
    cutoff = round(total - (span.denoising_end or 0.0) * total)
    count = int((path.timesteps >= cutoff).sum())
    if count < 1:
        raise InputError(
            f"denoising_end={span.denoising_end} leaves no step to take; use more steps or a later end."
        )
    return Path(path.timesteps[:count], count, beyond=len(path.timesteps) - count)


def planned(call: Call, task: Task) -> tuple[Path, bool]:
    """A run of the call's scheduler, begun anew: the way that the call goes, and whether it begins with noise alone."""
    whole = set_timesteps(call.scheduler, task.steps(call), call.device, task.schedule(call))
    path = task.path(call, whole)
    return until_end(call.scheduler, path, Span.of(call.arguments)), path.whole == whole.whole


def check_seeded(scheduler: Any, noise: Noise) -> None:
    """Refuse a seed for each picture where the scheduler draws for all of them from a seed of its own."""
    if isinstance(noise.generator, PictureGenerators) and hasattr(scheduler, "noise_sampler_seed"):
        raise InputError(
            f"{type(scheduler).__name__} draws noise for the whole batch from its noise_sampler_seed, so a picture's "
            f"seed does not determine the picture; use DPMSolverMultistepScheduler with "
            f"algorithm_type='sde-dpmsolver++', or a generator in place of the seed."
        )


def step_arguments(scheduler: Any, steps: Steps, noise: Noise) -> dict[str, Any]:
    """What this scheduler's ``step`` takes beyond prediction, timestep and sample."""
    offered = {
        "eta": steps.eta,
        "generator": noise.generator,
        "use_clipped_model_output": steps.use_clipped_model_output,
        "prev_timestep": "next",
    }
    takes = argument_names(scheduler.step)
    return {name: value for name, value in offered.items() if name in takes and value is not None}


class NoiseLevels:
    """The noise level σ of latents x + σ·n at each of a run's timesteps, found out when the first is asked for."""

    def __init__(self, scheduler: Any, timesteps: torch.Tensor) -> None:
        self._scheduler, self._timesteps = scheduler, timesteps

    def __call__(self, index: int) -> float:
        """That of a step; ``InputError`` for a scheduler that does not tell."""
        return self._levels[index]

    @cached_property
    def _levels(self) -> list[float]:
        times = self._timesteps.detach().to("cpu", torch.float64)
        config = self._scheduler.config
        if (config.get("timestep_type"), config.get("prediction_type")) == (
            "continuous",
            "v_prediction",
        ):  # ln(σ)/4
            return (4 * times).exp().tolist()
        bar = getattr(self._scheduler, "alphas_cumprod", None)
        if not isinstance(bar, torch.Tensor):
            raise InputError(
                f"The noise levels of a {type(self._scheduler).__name__}'s steps are not known; give guidance an "
                f"Interval of the steps in place of a NoiseInterval."
            )
        bar = bar.detach().to("cpu", torch.float64)
        levels = ((1 - bar) / bar).sqrt().log()
        below = times.clamp(0, len(levels) - 1).floor().long()
        above = (below + 1).clamp(max=len(levels) - 1)
        return torch.lerp(levels[below], levels[above], times.clamp(min=0) - below).exp().tolist()
