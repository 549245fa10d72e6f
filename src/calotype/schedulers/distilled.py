"""Distilled models, which jump to x̂0 and noise it anew: at steps of the schedule of their teacher (LCM, TCD), along
EDM's levels (CM), and over TrigFlow's angles (SCM)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import grid, levels
from calotype.schedulers.affine import affine
from calotype.schedulers.options import (
    LATENT,
    LEADING,
    Device,
    Numbers,
    choice,
    constructor,
    descending,
    exactly_one,
    step_count,
)
from calotype.schedulers.sigmas import IndexedScheduler, SigmaScheduler
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, stepping
from calotype.schedulers.table import TableScheduler


class DistilledScheduler(IndexedScheduler, TableScheduler):
    """Base of LCM and TCD: the same configuration and schedule, ``original_inference_steps`` of the teacher thinned."""

    _compatibles = ()

    __init__ = constructor(
        "TABLE original_inference_steps clip_sample clip_sample_range set_alpha_to_one steps_offset prediction_type "
        "THRESHOLDING timestep_spacing timestep_scaling rescale_betas_zero_snr",
        beta_schedule=choice("scaled_linear", "linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid"),
        clip_sample=False,
        timestep_spacing=LEADING,
        **LATENT,
    )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        original_inference_steps: int | None = None,
        timesteps: Numbers = None,
        strength: float = 1.0,
    ) -> None:
        """Begin a run of so many steps, or over the descending training steps ``timesteps``.

        With ``strength`` < 1 the run begins in the middle: of the teacher's steps, or of ``timesteps``, only this
        share is used.
        """
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        total = self.config.num_train_timesteps
        if timesteps is not None:
            given = descending(timesteps, total)
            given = given[len(given) - int(len(given) * strength) :]
            return self._begin(given, device, step_count(len(given)))
        steps = step_count(num_inference_steps, total)
        original = original_inference_steps or self.config.original_inference_steps
        if original is None:  # every training step
            original = total
        if original > total:
            raise InputError(f"original_inference_steps={original} is more than the {total} training steps.")
        teacher = np.arange(1, int(original * strength) + 1) * (total // original) - 1
        if steps > len(teacher):
            raise InputError(
                f"num_inference_steps={steps} is more than the {len(teacher)} steps to choose from "
                f"(original_inference_steps={original} times strength={strength}): give at most {len(teacher)}."
            )
        chosen = np.floor(np.linspace(0, len(teacher), steps, endpoint=False)).astype(np.int64)
        return self._begin(teacher[::-1][chosen], device, steps)


@dataclass
class LCMSchedulerOutput(BaseOutput):
    """``prev_sample`` and the consistency function's value at this step, ``denoised``."""

    prev_sample: Tensor
    denoised: Tensor | None = None


class LCMScheduler(DistilledScheduler):
    """Latent consistency models: f = c_out·x̂0 + c_skip·x, x' = α'·f + σ'·z; the last step is f.

    Luo et al., arXiv:2310.04378.
    """

    sigma_data = 0.5

    def get_scalings_for_boundary_condition_discrete(self, timestep: float) -> tuple[float, float]:
        """c_skip and c_out at a training step, 1 and 0 at the first (Song et al., arXiv:2303.01469, appendix C)."""
        scaled, data = timestep * self.config.timestep_scaling, self.sigma_data
        spread = scaled**2 + data**2
        return data**2 / spread, scaled / math.sqrt(spread)

    @stepping(LCMSchedulerOutput, begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; draws noise except at the last step."""
        t = int(at.plan.t[at.i])
        skip, out = self.get_scalings_for_boundary_condition_discrete(t)
        x0 = self._lines(t).clean.of(at.sample, at.output, self._limits)
        denoised = affine((out, x0), (skip, at.sample))
        if at.last:
            return denoised, denoised
        alpha, sigma = self._level(int(at.plan.t[at.i + 1]))
        return affine((alpha, denoised), (sigma, at.noise(generator, denoised.dtype))), denoised


@dataclass
class TCDSchedulerOutput(BaseOutput):
    """``prev_sample`` and the sample before noise was added, ``pred_noised_sample``."""

    prev_sample: Tensor
    pred_noised_sample: Tensor | None = None


class TCDScheduler(DistilledScheduler):
    """Trajectory consistency distillation: y = α_s·x̂0 + σ_s·ε̂ with s = ⌊(1 − γ)·t'⌋, then noise from s up to t'.

    γ = 0 is DDIM, γ = 1 is LCM (Zheng et al., arXiv:2402.19159, algorithm 4).
    """

    @stepping(TCDSchedulerOutput, begun=True)
    def step(self, at: Step, eta: float = 0.3, generator: Generators = None) -> Values:
        """The sample one step on; ``eta`` is the paper's γ. Draws noise if it is above 0, except at the last step."""
        if not 0 <= eta <= 1:
            raise InputError(f"eta={eta} must lie between 0 (deterministic) and 1 (all noise is new).")
        following = 0 if at.last else int(at.plan.t[at.i + 1])
        middle, to = self._level(math.floor((1 - eta) * following)), self._level(following)
        to_clean, to_noise, _ = self._lines(int(at.plan.t[at.i]))
        x0, eps = (line.of(at.sample, at.output) for line in (to_clean, to_noise))
        noised = affine((middle.alpha, x0), (middle.sigma, eps))
        if eta == 0 or at.last:
            return noised, noised
        kept, z = to.alpha / middle.alpha, at.noise(generator, noised.dtype)
        return affine((kept, noised), (math.sqrt(max(1 - kept**2, 0.0)), z)), noised


class CMStochasticIterativeScheduler(SigmaScheduler):
    """Consistency models (Song et al., arXiv:2303.01469, algorithm 1): f = c_skip·x + c_out·F and
    x' = f + √(σ'² − σ_min²)·z, along levels by Karras et al. (arXiv:2206.00364)."""

    def _prepare(self) -> None:
        self.init_noise_sigma = self.config.sigma_max
        self._coordinates = levels.Coordinates(levels.exploding, self.config.sigma_data)

    __init__ = constructor(
        "num_train_timesteps sigma_min sigma_max sigma_data s_noise rho clip_denoised",
        num_train_timesteps=40,
        sigma_min=0.002,
        sigma_max=80.0,
    )

    def _begin_initial(self) -> None:
        sigmas = self._karras(np.linspace(0, 1, self.config.num_train_timesteps))
        self._begin_levels(self.sigma_to_t(sigmas), torch.from_numpy(sigmas))

    def _karras(self, ramp: np.ndarray) -> np.ndarray:
        return grid.karras(self.config.sigma_min, self.config.sigma_max, ramp, self.config.rho)

    def sigma_to_t(self, sigmas: Any) -> Any:
        """What the network is told of a level: 250·ln σ."""
        return 250.0 * np.log(np.asarray(sigmas, dtype=np.float64) + 1e-44)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, timesteps: Numbers = None
    ) -> None:
        """Begin a run of so many steps, or over the descending training steps ``timesteps``."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        total = self.config.num_train_timesteps
        if timesteps is not None:
            chosen = descending(timesteps, total)
        else:
            steps = step_count(num_inference_steps, total)
            chosen = np.arange(steps)[::-1] * (total // steps)
        sigmas = self._karras(chosen[::-1] / (total - 1))
        ends = np.append(sigmas, self.config.sigma_min)
        self._begin_levels(self.sigma_to_t(sigmas), ends, device, len(chosen))

    def get_scalings(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out of Karras et al., arXiv:2206.00364, table 1."""
        data = self.config.sigma_data
        spread = sigma**2 + data**2
        return data**2 / spread, sigma * data / spread**0.5

    def get_scalings_for_boundary_condition(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out that are 1 and 0 at σ_min (arXiv:2303.01469, appendix C)."""
        data, above = self.config.sigma_data, sigma - self.config.sigma_min
        return data**2 / (above**2 + data**2), above * data / (sigma**2 + data**2) ** 0.5

    @stepping(begun=True, fractional=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; draws noise at every step of a run of more than one."""
        self._warn_unscaled()
        config, (sigma, following) = self.config, at.plan.kappa[at.i : at.i + 2]
        skip, out = self.get_scalings_for_boundary_condition(sigma)
        clean = affine((out, at.output), (skip, at.sample), bound=1.0 if config.clip_denoised else None)
        if len(at.plan.t) == 1:
            return (clean,)
        to = min(max(following, config.sigma_min), config.sigma_max)
        fresh = config.s_noise * math.sqrt(to**2 - config.sigma_min**2)
        return (affine((1.0, clean), (fresh, at.noise(generator))),)


class SCMScheduler(IndexedScheduler):
    """TrigFlow (Lu & Song, arXiv:2410.11081): x̂0 = cos t·x − sin t·F, x' = cos t'·x̂0 + sin t'·σ_d·z. ``timesteps`` are
    angles, the final 0 included."""

    init_noise_sigma: float = 1.0

    __init__ = constructor(
        "num_train_timesteps prediction_type sigma_data",
        setup=lambda self: None,
        prediction_type=choice("trigflow"),
    )

    def _begin_initial(self) -> None:
        self._begin(np.arange(self.config.num_train_timesteps)[::-1])

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[float] | Tensor | None = None,
        device: Device = None,
        max_timesteps: float | None = 1.57080,
        intermediate_timesteps: float | None = 1.3,
    ) -> None:
        """Begin a run of so many steps: over the given angles, which are one more, or from ``max_timesteps`` to 0.

        Two steps go over ``intermediate_timesteps`` where it is given, others are even.
        """
        steps = step_count(num_inference_steps, self.config.num_train_timesteps)
        if timesteps is not None:
            angles = torch.as_tensor(timesteps, dtype=torch.float32).cpu()
            if len(angles) != steps + 1:
                raise InputError(
                    f"timesteps has {len(angles)} entries for {steps} steps: give one more than steps."
                )
        elif max_timesteps is None:
            raise InputError("Give timesteps, or max_timesteps to begin at.")
        elif intermediate_timesteps and steps == 2:
            angles = torch.tensor([max_timesteps, intermediate_timesteps, 0.0])
        else:
            angles = torch.linspace(max_timesteps, 0, steps + 1)
        self._begin(angles, device, steps)

    @stepping(PredictionSchedulerOutput, begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; draws noise at every step, the last included."""
        if at.last:
            raise InputError(
                "The last of the timesteps, 0, is where the run ends: step from those before it."
            )
        s, to = at.plan.t[at.i : at.i + 2]
        clean = affine((math.cos(s), at.sample), (-math.sin(s), at.output))
        z = randn_tensor(at.output.shape, generator, at.output.device)
        return affine((math.cos(to), clean), (math.sin(to) * self.config.sigma_data, z)), clean
