"""Trajectory consistency distillation: strategic stochastic sampling (Zheng et al., arXiv:2402.19159, algorithm 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.distilled import DistilledScheduler


@dataclass
class TCDSchedulerOutput(BaseOutput):
    """``prev_sample`` and the sample before noise was added, ``pred_noised_sample``."""

    prev_sample: torch.Tensor
    pred_noised_sample: torch.Tensor | None = None


class TCDScheduler(DistilledScheduler):
    """y = α_s·x̂0 + σ_s·ε̂ with s = ⌊(1 − γ)·t'⌋, then noise from s up to t'; γ = 0 is DDIM, γ = 1 is LCM."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> TCDSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on; ``eta`` is the paper's γ. Draws noise if it is above 0, except at the last step."""
        if not 0 <= eta <= 1:
            raise InputError(f"eta={eta} must lie between 0 (deterministic) and 1 (all noise is new).")
        self._running()
        run, i = self._locate(timestep)
        last = i + 1 == len(run.plan.t)
        following = 0 if last else int(run.plan.t[i + 1])
        s, kind = self._level(int(run.plan.t[i])), self.config.prediction_type
        middle, to = self._level(math.floor((1 - eta) * following)), self._level(following)
        x0 = prediction.clean(kind, *s).of(sample, model_output)
        noised = affine(
            (middle.alpha, x0), (middle.sigma, prediction.noise(kind, *s).of(sample, model_output))
        )
        prev_sample = noised
        if eta > 0 and not last:
            kept = to.alpha / middle.alpha
            z = randn_tensor(model_output.shape, generator, model_output.device, noised.dtype)
            prev_sample = affine((kept, noised), (math.sqrt(max(1 - kept**2, 0.0)), z))
        run.index = i + 1
        return TCDSchedulerOutput(prev_sample, noised) if return_dict else (prev_sample, noised)
