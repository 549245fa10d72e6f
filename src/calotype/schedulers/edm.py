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

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine, cast, evaluate
from calotype.core.brownian import BrownianNoise
from calotype.schedulers.checks import exactly_one, step_count
from calotype.schedulers.churn import noise_like, raised_level, raised_sample
from calotype.schedulers.coordinates import edm
from calotype.schedulers.multistep import SOLVER_TYPES, multistep, remembered
from calotype.schedulers.options import THRESHOLDING, Device, choice, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.prediction import Limits, Linear
from calotype.schedulers.run import Run
from calotype.schedulers.sigmas import SigmaScheduler
from calotype.schedulers.stepping import stepping


def quarter_log(sigma: Tensor) -> Tensor:
    """The time of EDM's networks, ¼·ln σ."""
    return 0.25 * torch.log(sigma)


def arctangent(sigma: Tensor) -> Tensor:
    """The time of Stable Audio's networks, (2/π)·arctan σ."""
    return sigma.atan() / math.pi * 2


PREDICTIONS = choice("epsilon", "v_prediction")


class EDMScheduler(SigmaScheduler):
    """Base of the schedulers with ``sigma_min``, ``sigma_max`` and ``sigma_data`` in their configuration."""

    _time: Callable[[Tensor], Tensor]
    """The network's time at a level."""

    def _configure(self) -> None:
        self._coordinates = edm(self.config.sigma_data)

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

    def _levels(self, steps: int, dtype: torch.dtype) -> Tensor:
        """σ from ``sigma_max`` to ``sigma_min``, computed in ``dtype``."""
        config, ramp = self.config, torch.linspace(0, 1, steps, dtype=dtype)
        if config.sigma_schedule == "karras":
            top, bottom = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
            return (top + ramp * (bottom - top)) ** config.rho
        ends = math.log(config.sigma_min), math.log(config.sigma_max)
        return torch.linspace(*ends, steps).exp().flip(0).to(dtype)

    def _begin_edm(self, levels: Tensor, final: float, device: Any, count: int | None) -> None:
        """Begin a run over ``levels`` and a final one."""
        levels = levels.to(torch.float32)
        sigmas = torch.cat([levels, torch.tensor([final], dtype=torch.float32)])
        self._begin_levels(self._time(levels), sigmas, device, count)

    def _final(self, lowest: float) -> float:
        return lowest if self.config.final_sigmas_type == "sigma_min" else 0.0


class EDMEulerScheduler(EDMScheduler):
    """Euler's method with churn (algorithm 2, uncorrected): x' = x̂0 + (σ'/σ̂)·(x − x̂0)."""

    _time = staticmethod(quarter_log)

    __init__ = constructor(
        "sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps prediction_type rho final_sigmas_type",
        setup=EDMScheduler._configure,
        sigma_min=0.002,
        sigma_max=80.0,
        prediction_type=PREDICTIONS,
    )

    def _begin_initial(self) -> None:
        self._begin_edm(self._levels(self.config.num_train_timesteps + 1, torch.float64), 0.0, None, None)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        sigmas: Tensor | Sequence[float] | None = None,
    ) -> None:
        """Begin a run of so many steps, or over the levels ``sigmas`` (without the final one)."""
        exactly_one(num_inference_steps=num_inference_steps, sigmas=sigmas)
        steps = step_count(num_inference_steps if sigmas is None else len(sigmas))
        if sigmas is None:
            levels = self._levels(steps, torch.float64)
        else:
            levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        self._begin_edm(levels, self._final(float(levels[-1])), device, steps)

    @stepping(PredictionSchedulerOutput, fractional=True, last="pred_original_sample")
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
        pred_original_sample: Tensor | None = None,
    ) -> tuple[Value, Value]:
        """The sample one step on; ``pred_original_sample`` replaces the network's x̂0."""
        self._warn_unscaled()
        kappa, following = run.plan.kappa[i : i + 2]
        x = cast(sample, torch.float32)
        raised = raised_level(kappa, len(run.plan.kappa) - 1, s_churn, s_tmin, s_tmax)
        if raised is not None:
            x = raised_sample(x, noise_like(output, generator), kappa, raised, s_noise)
            kappa = raised
        x0 = self._clean(kappa).of(x, output) if pred_original_sample is None else pred_original_sample
        kept = following / kappa
        return affine((kept, x), (1 - kept, x0), dtype=output.dtype), x0


class EDMMultistepScheduler(EDMScheduler):
    """Base of both DPM-Solver++: one exponential integral a step over the last x̂0, with α = 1 (arXiv:2211.01095)."""

    def _begin_initial(self) -> None:
        self._begin_edm(self._levels(self.config.num_train_timesteps, torch.float32), 0.0, None, None)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        levels = self._levels(steps, torch.float32)
        self._begin_edm(levels, self._final(self.config.sigma_min), device, steps)


class EDMDPMSolverMultistepScheduler(EDMMultistepScheduler):
    """As ODE or SDE (Playground v2.5)."""

    _time = staticmethod(quarter_log)

    def _prepare(self) -> None:
        config = self.config
        self._configure()
        self._tau = 1.0 if config.algorithm_type.startswith("sde") else 0.0
        self._limits = Limits()
        if config.thresholding:
            self._limits = Limits(ratio=config.dynamic_thresholding_ratio, largest=config.sample_max_value)

    __init__ = constructor(
        "sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps prediction_type rho solver_order "
        f"{THRESHOLDING} algorithm_type solver_type lower_order_final euler_at_final final_sigmas_type",
        setup=_prepare,
        sigma_min=0.002,
        sigma_max=80.0,
        prediction_type=PREDICTIONS,
        algorithm_type=choice("dpmsolver++", "sde-dpmsolver++", others={"deis": "dpmsolver++"}),
        solver_type=SOLVER_TYPES,
    )

    @stepping(begun=True)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Tensor]:
        """The sample one step on; the SDE variant draws noise at every step."""
        x0 = self._clean(run.plan.kappa[i]).of(sample, output, self._limits)
        update, known = multistep(self.config, run, i, x0, data=True, tau=self._tau)
        terms = [(update.sample, sample), *zip(update.predictions, known, strict=False)]
        if self._tau:
            z = randn_tensor(output.shape, generator, output.device, output.dtype)
            terms.append((update.noise, z))
        return remembered(run, affine(*terms), known)


class CosineDPMSolverMultistepScheduler(EDMMultistepScheduler):
    """As SDE with the noise of a Brownian path, for networks that take the time (2/π)·arctan σ (Stable Audio)."""

    _time = staticmethod(arctangent)

    __init__ = constructor(
        "sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps solver_order prediction_type rho "
        "solver_type lower_order_final euler_at_final final_sigmas_type",
        setup=EDMScheduler._configure,
        sigma_min=0.3,
        sigma_max=500,
        sigma_data=1.0,
        sigma_schedule=choice("exponential", "karras"),
        prediction_type=choice("v_prediction", "epsilon"),
        solver_type=SOLVER_TYPES,
    )

    @stepping(begun=True)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Tensor]:
        """The sample one step on; the Brownian path has the generator's initial seed (or each item its own)."""
        config, plan = self.config, run.plan
        if run.noise is None:
            seed: int | list[int] | None = None
            if isinstance(generator, torch.Generator):
                seed = generator.initial_seed()
            elif generator is not None:
                seed = [g.initial_seed() for g in generator]
            run.noise = BrownianNoise(output, config.sigma_min, config.sigma_max, seed)
        x0 = self._clean(plan.kappa[i]).of(sample, output)
        update, known = multistep(config, run, i, x0, data=True, tau=1.0)
        terms = [(update.sample, sample), *zip(update.predictions, known, strict=False)]
        if update.noise:
            terms.append((update.noise, run.noise(plan.kappa[i], plan.kappa[i + 1])))
        return remembered(run, affine(*terms), known)
