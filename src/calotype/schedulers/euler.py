"""Euler's method on the probability-flow ODE in κ, with churn; and ancestral, down further and back up with noise.

Karras et al., arXiv:2206.00364, algorithm 2; Song et al., arXiv:2010.02502, for η = 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.schedulers import levels
from calotype.schedulers.affine import Value, affine, cast
from calotype.schedulers.ladders import ExplodingScheduler
from calotype.schedulers.levels import Level, Linear, transfer
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.options import Device, Numbers, choice, constructor, exactly_one, step_count
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, once, stepping


class Churn(NamedTuple):
    """Noise added before a deterministic step, which it then removes again (arXiv:2206.00364, algorithm 2)."""

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = float("inf")
    s_noise: float = 1.0
    generator: Generators = None

    def raised(self, at: Step, kappa: float) -> tuple[Value, float]:
        """The sample in float32 and its level: as they are, or where κ is in [``s_tmin``, ``s_tmax``] raised by noise
        to κ̂ = κ·(1 + min(s_churn/steps, √2 − 1))."""
        x = cast(at.sample, torch.float32)
        if self.s_churn <= 0 or not self.s_tmin <= kappa <= self.s_tmax:
            return x, kappa
        raised = kappa * (1 + min(self.s_churn / (len(at.plan.kappa) - 1), math.sqrt(2) - 1))
        added = self.s_noise * math.sqrt(raised**2 - kappa**2)
        return affine((1.0, x), (added, at.noise(self.generator))), raised


STILL = Churn()


class EulerDiscreteScheduler(ExplodingScheduler):
    """x' = x̂0 + (κ'/κ̂)·(x − x̂0)."""

    _zero_snr_floor = True

    __init__ = constructor(
        "TABLE prediction_type interpolation_type CONVERTED sigma_min sigma_max timestep_spacing timestep_type "
        "steps_offset rescale_betas_zero_snr final_sigmas_type",
        prediction_type=choice("epsilon", "sample", "v_prediction", "original_sample"),
    )

    def _begin_initial(self) -> None:
        self._begin_every(torch.float32)
        if self._continuous:
            self.timesteps = 0.25 * self.sigmas[:-1].log()

    @property
    def _continuous(self) -> bool:
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        timesteps: Numbers = None,
        sigmas: Numbers = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps, or over these noise levels (the last included)."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if sigmas is not None:
            ladder = np.asarray(sigmas, dtype=np.float32)
            t = sigma_to_t(ladder[: step_count(len(ladder) - 1)], self._table.log_kappa)
        else:
            t, ladder = self._ladder(num_inference_steps, timesteps)
        if self._continuous:
            if timesteps is not None:
                raise InputError("timesteps cannot be given with timestep_type='continuous': give sigmas.")
            t = 0.25 * np.log(ladder[:-1])
        self._begin_levels(t, ladder, device, len(t), torch.float32)

    @stepping(PredictionSchedulerOutput, fractional=True)
    def step(self, at: Step, churn: Churn = STILL) -> Values:
        """The sample one step on. With ``s_churn`` noise is added first where κ is in [``s_tmin``, ``s_tmax``]."""
        self._warn_unscaled()
        kappa, following = at.plan.kappa[at.i : at.i + 2]
        x, raised = churn.raised(at, kappa)
        to_clean, step = self._coefficients(kappa, raised, following)
        return affine((step.x, x), (step.m, at.output), dtype=at.output.dtype), to_clean.of(x, at.output)

    @once
    def _coefficients(self, kappa: float, raised: float, following: float) -> tuple[Linear, Linear]:
        """The lines of x̂0 and x' in the sample and the output; only ε-prediction follows a churned level."""
        to_clean, _ = self._lines(raised if self.config.prediction_type == "epsilon" else kappa)
        kept = following / raised
        return to_clean, Linear(kept + (1 - kept) * to_clean.x, (1 - kept) * to_clean.m)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α·ε − σ·x0 at the levels of ``timesteps``, the target of v-prediction."""
        self._refuse_index(timesteps)
        plan = self._run.plan
        turned = [Level(alpha, -sigma) for alpha, sigma in map(levels.preserving, plan.kappa)]
        return self._mixed(turned, [plan.index(t) for t in timesteps], noise, sample)


class EulerAncestralDiscreteScheduler(ExplodingScheduler):
    """x' = x̂0 + (κ_down/κ)·(x − x̂0) + κ_up·z with κ_down² + κ_up² = κ'²."""

    _zero_snr_floor = True

    __init__ = constructor("TABLE prediction_type SPACED rescale_betas_zero_snr")
    set_timesteps = ExplodingScheduler._begin_steps

    def _begin_initial(self) -> None:
        self._begin_every(torch.float64)

    @stepping(PredictionSchedulerOutput, fractional=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; draws noise at every step, the last included."""
        self._warn_unscaled()
        to_clean, along, across, up = self._coefficients(at.i)
        x, z = cast(at.sample, torch.float32), at.noise(generator)
        prev_sample = affine((along, x), (across, at.output), (up, z), dtype=at.output.dtype)
        return prev_sample, to_clean.of(x, at.output)

    @once
    def _coefficients(self, i: int) -> tuple[Linear, float, float, float]:
        """x̂0's line, and the weights of the sample, the output and the new noise in x'."""
        s, t = self._run.plan.levels[i : i + 2]
        _, down, up = transfer(s, t, 1.0)
        kept, (to_clean, _) = down / s.sigma, self._lines(s.sigma)
        return to_clean, kept + (1 - kept) * to_clean.x, (1 - kept) * to_clean.m, up
