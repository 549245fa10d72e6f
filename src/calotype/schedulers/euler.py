"""Euler's method on the probability-flow ODE in κ, with churn; and ancestral, down further and back up with noise.

Karras et al., arXiv:2206.00364, algorithm 2; Song et al., arXiv:2010.02502, for η = 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine, cast
from calotype.schedulers.checks import exactly_one, step_count, steps_or_timesteps
from calotype.schedulers.churn import noise_like, raised_level, raised_sample
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.grid import Grid
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.options import CONVERTED, SPACED, TABLE, Device, Numbers, choice, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.prediction import Linear
from calotype.schedulers.run import Run
from calotype.schedulers.stepping import stepping
from calotype.schedulers.transfer import fresh_noise, transfer


class EulerDiscreteScheduler(ExplodingScheduler):
    """x' = x̂0 + (κ'/κ̂)·(x − x̂0)."""

    _zero_snr_floor = True

    __init__ = constructor(
        f"{TABLE} prediction_type interpolation_type {CONVERTED} sigma_min sigma_max timestep_spacing timestep_type "
        "steps_offset rescale_betas_zero_snr final_sigmas_type",
        setup=ExplodingScheduler._make_table,
        prediction_type=choice("epsilon", "sample", "v_prediction", "original_sample"),
    )

    def _begin_initial(self) -> None:
        self._begin_training_grid(torch.float32)
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
            levels = np.asarray(sigmas, dtype=np.float32)
            steps = step_count(len(levels) - 1)
            t = sigma_to_t(levels[:-1], self._table.log_kappa)
        else:
            steps = steps_or_timesteps(self.config, num_inference_steps, timesteps)
            if timesteps is not None and self._continuous:
                raise InputError("timesteps cannot be given with timestep_type='continuous': give sigmas.")
            t, levels = self._ladder(steps, timesteps)
        t = t.astype(np.float32)
        if self._continuous:
            t = 0.25 * np.log(levels[:steps])
        self._begin_grid(Grid(t, levels), device, steps, torch.float32)

    @stepping(PredictionSchedulerOutput, fractional=True)
    def step(
        self,
        run: Run,
        i: int,
        output: Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
    ) -> tuple[Value, Value]:
        """The sample one step on. With ``s_churn`` noise is added first where κ is in [``s_tmin``, ``s_tmax``]."""
        self._warn_unscaled()
        kappa, following = run.plan.kappa[i : i + 2]
        x = cast(sample, torch.float32)
        raised = raised_level(kappa, len(run.plan.kappa) - 1, s_churn, s_tmin, s_tmax)
        if raised is not None:
            x = raised_sample(x, noise_like(output, generator), kappa, raised, s_noise)
            to_clean, step = self._coefficients(kappa, raised, following)
        else:
            if i not in run.plan.memo:
                run.plan.memo[i] = self._coefficients(kappa, kappa, following)
            to_clean, step = run.plan.memo[i]
        return affine((step.x, x), (step.m, output), dtype=output.dtype), to_clean.of(x, output)

    def _coefficients(self, kappa: float, raised: float, following: float) -> tuple[Linear, Linear]:
        """The lines of x̂0 and x' in the sample and the output; only ε-prediction follows a churned level."""
        kind = self.config.prediction_type
        to_clean = self._clean(kind, raised if kind == "epsilon" else kappa)
        kept = following / raised
        return to_clean, Linear(kept + (1 - kept) * to_clean.x, (1 - kept) * to_clean.m)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α·ε − σ·x0 at the levels of ``timesteps``, the target of v-prediction."""
        self._refuse_index(timesteps)
        levels = [self._coordinates.preserving(kappa) for kappa in self._run.plan.kappa]
        alpha, sigma = self._weights(levels, [self._run.plan.index(t) for t in timesteps], sample)
        return alpha * noise - sigma * sample


class EulerAncestralDiscreteScheduler(ExplodingScheduler):
    """x' = x̂0 + (κ_down/κ)·(x − x̂0) + κ_up·z with κ_down² + κ_up² = κ'²."""

    _zero_snr_floor = True

    __init__ = constructor(
        f"{TABLE} prediction_type {SPACED} rescale_betas_zero_snr", setup=ExplodingScheduler._make_table
    )

    def _begin_initial(self) -> None:
        self._begin_training_grid(torch.float64)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        self._begin_grid(Grid(*self._ladder(steps)), device, steps, torch.float32)

    @stepping(PredictionSchedulerOutput, fractional=True)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Value, Value]:
        """The sample one step on; draws noise at every step, the last included."""
        self._warn_unscaled()
        if i not in run.plan.memo:
            s, t = run.plan.levels[i : i + 2]
            up = fresh_noise(s, t, 1.0)
            down = transfer(t, up)[1] / s.sigma
            to_clean = self._clean(self.config.prediction_type, s.sigma)
            run.plan.memo[i] = to_clean, down + (1 - down) * to_clean.x, (1 - down) * to_clean.m, up
        to_clean, along, across, up = run.plan.memo[i]
        x = cast(sample, torch.float32)
        z = randn_tensor(output.shape, generator, output.device, output.dtype)
        return affine((along, x), (across, output), (up, z), dtype=output.dtype), to_clean.of(x, output)
