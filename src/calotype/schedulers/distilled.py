"""Schedulers of distilled models, evaluated at steps of the schedule that they were distilled on: LCM, TCD."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import Value, affine
from calotype.schedulers.checks import exactly_one, step_count
from calotype.schedulers.options import TABLE, THRESHOLDING, Device, Numbers, choice, constructor
from calotype.schedulers.run import Run
from calotype.schedulers.sigmas import IndexedScheduler
from calotype.schedulers.stepping import stepping
from calotype.schedulers.table import TableScheduler


class DistilledScheduler(IndexedScheduler, TableScheduler):
    """Base of LCM and TCD: the same configuration and schedule, ``original_inference_steps`` of the teacher thinned."""

    _compatibles = ()

    __init__ = constructor(
        f"{TABLE} original_inference_steps clip_sample clip_sample_range set_alpha_to_one steps_offset prediction_type "
        f"{THRESHOLDING} timestep_spacing timestep_scaling rescale_betas_zero_snr",
        setup=TableScheduler._make_table,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=choice("scaled_linear", "linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid"),
        clip_sample=False,
        timestep_spacing=choice("leading", "linspace", "trailing"),
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
            given = self._given_timesteps(timesteps)
            given = given[len(given) - int(len(given) * strength) :]
            return self._begin_table(given, device, step_count(len(given)))
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
        return self._begin_table(teacher[::-1][chosen], device, steps)


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
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Value, Value]:
        """The sample one step on; draws noise except at the last step."""
        t = int(run.plan.t[i])
        skip, out = self.get_scalings_for_boundary_condition_discrete(t)
        to_clean = prediction.clean(self.config.prediction_type, *self._level(t))
        denoised = affine((out, to_clean.of(sample, output, self._limits)), (skip, sample))
        if i + 1 == len(run.plan.t):
            return denoised, denoised
        alpha, sigma = self._level(int(run.plan.t[i + 1]))
        z = randn_tensor(output.shape, generator, output.device, denoised.dtype)
        return affine((alpha, denoised), (sigma, z)), denoised


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
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, eta: float = 0.3, generator: Generators = None
    ) -> tuple[Value, Value]:
        """The sample one step on; ``eta`` is the paper's γ. Draws noise if it is above 0, except at the last step."""
        if not 0 <= eta <= 1:
            raise InputError(f"eta={eta} must lie between 0 (deterministic) and 1 (all noise is new).")
        last = i + 1 == len(run.plan.t)
        following = 0 if last else int(run.plan.t[i + 1])
        s, kind = self._level(int(run.plan.t[i])), self.config.prediction_type
        middle, to = self._level(math.floor((1 - eta) * following)), self._level(following)
        x0, eps = (line(kind, *s).of(sample, output) for line in (prediction.clean, prediction.noise))
        noised = affine((middle.alpha, x0), (middle.sigma, eps))
        if eta == 0 or last:
            return noised, noised
        kept = to.alpha / middle.alpha
        z = randn_tensor(output.shape, generator, output.device, noised.dtype)
        return affine((kept, noised), (math.sqrt(max(1 - kept**2, 0.0)), z)), noised
