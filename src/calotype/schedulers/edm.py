"""Schedulers in the coordinates of Karras et al. (arXiv:2206.00364), where σ itself is the level: Euler, DPM-Solver++.

The network F is preconditioned: x̂0 = c_skip·x + c_out·F with c_skip = σ_d²/(σ² + σ_d²) and c_out = ±σσ_d/√(σ² + σ_d²),
and takes c_in·x with c_in = 1/√(σ² + σ_d²).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from calotype.core.brownian import BrownianNoise
from calotype.core.config import init_parameters
from calotype.core.random import Generators
from calotype.schedulers import grid, levels
from calotype.schedulers.affine import affine, evaluate
from calotype.schedulers.dpm_solver import SOLVER_TYPES, multistep
from calotype.schedulers.euler import STILL, Churn
from calotype.schedulers.levels import Limits, Linear
from calotype.schedulers.options import Device, choice, constructor, exactly_one, step_count
from calotype.schedulers.sigmas import SigmaScheduler
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, stepping


def quarter_log(sigma: Tensor) -> Tensor:
    """The time of EDM's networks, ¼·ln σ."""
    return 0.25 * torch.log(sigma)


def arctangent(sigma: Tensor) -> Tensor:
    """The time of Stable Audio's networks, (2/π)·arctan σ."""
    return sigma.atan() / math.pi * 2


LEVELS = "sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps"
PIXELS: dict[str, Any] = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "prediction_type": choice("epsilon", "v_prediction"),
}


class EDMScheduler(SigmaScheduler):
    """Base of the schedulers with ``sigma_min``, ``sigma_max`` and ``sigma_data`` in their configuration."""

    _time: Callable[[Tensor], Tensor]
    """The network's time at a level."""

    def _prepare(self) -> None:
        self._coordinates = levels.Coordinates(levels.exploding, self.config.sigma_data)
        self._limits = Limits.of(self.config, init_parameters(type(self)))

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied with to become the first sample."""
        return math.sqrt(self.config.sigma_max**2 + 1)

    def precondition_inputs(self, sample: Tensor, sigma: float | Tensor) -> Tensor:
        """c_in·x."""
        return sample * (1 / (sigma**2 + self.config.sigma_data**2) ** 0.5)

    def precondition_noise(self, sigma: float | Tensor) -> Tensor:
        """The network's time."""
        return self._time(torch.as_tensor(sigma, dtype=torch.float32))

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: float | Tensor) -> Tensor:
        """x̂0 = c_skip·x + c_out·F."""
        return evaluate(self._clean(float(sigma)).of(sample, model_output))[0]

    def _clean(self, sigma: float) -> Linear:
        data = self.config.sigma_data
        total = sigma**2 + data**2
        sign = -1.0 if self.config.prediction_type == "v_prediction" else 1.0
        return Linear(data**2 / total, sign * sigma * data / math.sqrt(total))

    def _spaced(self, steps: int, dtype: torch.dtype) -> Tensor:
        """σ from ``sigma_max`` to ``sigma_min``, computed in ``dtype``."""
        low, high = self.config.sigma_min, self.config.sigma_max
        if self.config.sigma_schedule == "karras":
            return grid.karras(low, high, torch.linspace(0, 1, steps, dtype=dtype), self.config.rho)
        return torch.linspace(math.log(low), math.log(high), steps).exp().flip(0)

    def _begin_edm(
        self, ladder: Tensor, lowest: float = 0.0, device: Any = None, count: int | None = None
    ) -> None:
        """Begin a run over levels and a final one: zero, or by ``final_sigmas_type`` the ``lowest``."""
        final = lowest if self.config.final_sigmas_type == "sigma_min" else 0.0
        ladder = ladder.to(torch.float32)
        self._begin_levels(self._time(ladder), torch.cat([ladder, torch.tensor([final])]), device, count)


class EDMEulerScheduler(EDMScheduler):
    """Euler's method with churn (algorithm 2, uncorrected): x' = x̂0 + (σ'/σ̂)·(x − x̂0)."""

    _time = staticmethod(quarter_log)

    __init__ = constructor(f"{LEVELS} prediction_type rho final_sigmas_type", **PIXELS)

    def _begin_initial(self) -> None:
        self._begin_edm(self._spaced(self.config.num_train_timesteps + 1, torch.float64))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        sigmas: Tensor | Sequence[float] | None = None,
    ) -> None:
        """Begin a run of so many steps, or over the levels ``sigmas`` (without the final one)."""
        exactly_one(num_inference_steps=num_inference_steps, sigmas=sigmas)
        if sigmas is None:
            ladder = self._spaced(step_count(num_inference_steps), torch.float64)
        else:
            ladder = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        self._begin_edm(ladder, float(ladder[-1]), device, step_count(len(ladder)))

    @stepping(PredictionSchedulerOutput, fractional=True, last="pred_original_sample")
    def step(self, at: Step, churn: Churn = STILL, pred_original_sample: Tensor | None = None) -> Values:
        """The sample one step on; ``pred_original_sample`` replaces the network's x̂0."""
        self._warn_unscaled()
        kappa, following = at.plan.kappa[at.i : at.i + 2]
        x, kappa = churn.raised(at, kappa)
        x0 = self._clean(kappa).of(x, at.output) if pred_original_sample is None else pred_original_sample
        kept = following / kappa
        return affine((kept, x), (1 - kept, x0), dtype=at.output.dtype), x0


class EDMMultistepScheduler(EDMScheduler):
    """Base of both DPM-Solver++: one exponential integral a step over the last x̂0, with α = 1 (arXiv:2211.01095)."""

    def _begin_initial(self) -> None:
        self._begin_edm(self._spaced(self.config.num_train_timesteps, torch.float32))

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        self._begin_edm(self._spaced(steps, torch.float32), self.config.sigma_min, device, steps)

    def _integrated(self, at: Step, z: Tensor | None, tau: float) -> Values:
        x0 = self._clean(at.plan.kappa[at.i]).of(at.sample, at.output, self._limits)
        return multistep(self.config, at, x0, z, data=True, tau=tau)


class EDMDPMSolverMultistepScheduler(EDMMultistepScheduler):
    """As ODE or SDE (Playground v2.5)."""

    _time = staticmethod(quarter_log)

    __init__ = constructor(
        f"{LEVELS} prediction_type rho solver_order THRESHOLDING algorithm_type solver_type lower_order_final "
        "euler_at_final final_sigmas_type",
        algorithm_type=choice("dpmsolver++", "sde-dpmsolver++", others={"deis": "dpmsolver++"}),
        solver_type=SOLVER_TYPES,
        **PIXELS,
    )

    @stepping(begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; the SDE variant draws noise at every step."""
        if self.config.algorithm_type.startswith("sde"):
            return self._integrated(at, at.noise(generator), 1.0)
        return self._integrated(at, None, 0.0)


class CosineDPMSolverMultistepScheduler(EDMMultistepScheduler):
    """As SDE with the noise of a Brownian path, for networks that take the time (2/π)·arctan σ (Stable Audio)."""

    _time = staticmethod(arctangent)

    __init__ = constructor(
        f"{LEVELS} solver_order prediction_type rho solver_type lower_order_final euler_at_final final_sigmas_type",
        sigma_min=0.3,
        sigma_max=500,
        sigma_data=1.0,
        sigma_schedule=choice("exponential", "karras"),
        prediction_type=choice("v_prediction", "epsilon"),
        solver_type=SOLVER_TYPES,
    )

    @stepping(begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; the Brownian path has the generator's initial seed (or each item its own)."""
        config, run, (sigma, following) = self.config, at.run, at.plan.kappa[at.i : at.i + 2]
        if run.noise is None:
            seed: int | list[int] | None = None
            if isinstance(generator, torch.Generator):
                seed = generator.initial_seed()
            elif generator is not None:
                seed = [g.initial_seed() for g in generator]
            run.noise = BrownianNoise(at.output, config.sigma_min, config.sigma_max, seed)
        # a step of no length, or to no noise, adds none
        z = run.noise(sigma, following) if 0 < following != sigma else None
        return self._integrated(at, z, 1.0)
