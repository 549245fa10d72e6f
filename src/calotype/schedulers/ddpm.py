"""DDPM: ancestral sampling along the trained chain, x' = the posterior's mean in (x, x̂0) + ς·z; unCLIP's
chain; and that of Würstchen, over continuous time.

Ho et al., arXiv:2006.11239, equation 7; Nichol & Dhariwal, arXiv:2102.09672, for the variances that networks learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.schedulers import levels
from calotype.schedulers.affine import affine, evaluate
from calotype.schedulers.levels import level_of_alpha_bar, posterior
from calotype.schedulers.options import (
    LEADING,
    Device,
    Numbers,
    choice,
    constructor,
    descending,
    exactly_one,
    step_count,
)
from calotype.schedulers.scheduler import SchedulerMixin, Unscaled
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, once, stepping
from calotype.schedulers.table import TableScheduler, columns


class Posterior(NamedTuple):
    """x̂0's line, the mean's weights of x and x̂0, and the two variances that bound the true one."""

    clean: levels.Linear
    along: float
    toward: float
    small: float
    large: float


class PosteriorScheduler(TableScheduler):
    """Base of the methods that walk along the trained chain; ``variance_type`` says where ς comes from."""

    variance_type: str

    def _prepare_chain(self) -> None:
        self.variance_type = self.config.variance_type
        self._prepare()

    @once
    def _coefficients(self, t: int, previous: int, beta: float | None = None) -> Posterior:
        """The weights of a step; ``beta`` is 1 − ᾱ_t/ᾱ_previous where it is known better than from the table."""
        beta = self._table.beta(t, previous) if beta is None else beta
        along, toward, variance = posterior(self._level(t), self._level(previous), beta)
        clean = levels.clean(self.config.prediction_type, *self._level(t))
        return Posterior(clean, along, toward, max(variance, 1e-20), beta)

    def _drawn(self, at: Step, weights: Posterior, generator: Generators, first: bool) -> Values:
        """The sample one step on and x̂0; noise is drawn except at the ``first`` training step."""
        to_clean, along, toward, small, large = weights
        sample, learned = at.sample, None
        if at.output.shape[1] == 2 * sample.shape[1] and self.variance_type.startswith("learned"):
            at.output, learned = at.output.split(sample.shape[1], dim=1)
        x0 = to_clean.of(sample, at.output, self._limits)
        if first:
            return affine((along, sample), (toward, x0)), x0
        z, deviation = at.noise(generator), self._deviation(small, large, learned)
        if isinstance(deviation, float):
            return affine((along, sample), (toward, x0), (deviation, z)), x0
        mean, x0 = evaluate(affine((along, sample), (toward, x0)), x0)
        return mean + deviation * z, x0

    def _deviation(self, small: float, large: float, learned: Tensor | None) -> float | Tensor:
        """ς; a learned range interpolates between the two variances in their logs (arXiv:2102.09672, equation 15)."""
        kind = self.variance_type
        if not kind.startswith("learned"):
            return math.sqrt(small if kind.startswith("fixed_small") else large)
        if learned is None:
            raise InputError(
                f"variance_type={kind!r} needs a network whose output has twice the sample's channels; it has "
                f"as many as the sample. Use one of the fixed variance types."
            )
        if kind == "learned":
            return learned**0.5
        low, high = math.log(small), math.log(large)
        return torch.exp((learned + 1) * (0.25 * (high - low)) + 0.5 * low)


class AncestralScheduler(PosteriorScheduler):
    """Base of DDPM and its form for parallel sampling: the same configuration, schedule and step."""

    __init__ = constructor(
        "TABLE variance_type clip_sample prediction_type thresholding dynamic_thresholding_ratio clip_sample_range "
        "sample_max_value timestep_spacing steps_offset rescale_betas_zero_snr",
        setup=PosteriorScheduler._prepare_chain,
        timestep_spacing=LEADING,
    )

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, timesteps: Numbers = None
    ) -> None:
        """Begin a run of so many steps, or over the descending training steps ``timesteps``."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is None:
            return self._begin_spaced(step_count(num_inference_steps), device)
        return self._begin(descending(timesteps, self.config.num_train_timesteps), device, len(timesteps))

    @stepping(PredictionSchedulerOutput, indexed=False)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on, from the network's output at ``timestep``; draws noise except at step 0."""
        t = at.t
        return self._drawn(at, self._coefficients(t, self._previous(t)), generator, t == 0)

    @once
    def _previous(self, t: int) -> int:
        return self.previous_timestep(t)


class DDPMScheduler(AncestralScheduler):
    """x' = posterior mean of (x, x̂0) + ς·z; ``variance_type`` says where ς comes from."""


class DDPMParallelScheduler(AncestralScheduler):
    """DDPM whose mean can be taken at many steps at once, for Picard iteration (ParaDiGMS, arXiv:2305.16317)."""

    _is_ode_scheduler = False

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        """The posterior means of a batch whose items are each at a training step of their own, (batch,)."""
        total = self.config.num_train_timesteps
        jump = total // (self.num_inference_steps or total)
        if model_output.shape[1] == 2 * sample.shape[1] and self.variance_type.startswith("learned"):
            model_output = model_output[:, : sample.shape[1]]
        steps = [self._coefficients(t, max(t - jump, -1)) for t in timesteps.tolist()]
        x, m, divisor, along, toward = columns([(*c.clean, c.along, c.toward) for c in steps], sample)
        return along * sample + toward * self._limits.apply((x * sample + m * model_output) / divisor)


class UnCLIPScheduler(PosteriorScheduler):
    """As DDPM with a cosine schedule, but steps are even between both ends of the chain and the caller may say which
    step follows (Ramesh et al., arXiv:2204.06125; Karlo, Kandinsky)."""

    _compatibles = ()

    __init__ = constructor(
        "num_train_timesteps variance_type clip_sample clip_sample_range prediction_type beta_schedule",
        setup=PosteriorScheduler._prepare_chain,
        variance_type=choice("fixed_small_log", "learned_range"),
        prediction_type=choice("epsilon", "sample"),
        beta_schedule=choice("squaredcos_cap_v2"),
    )

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps, the last trained and the first among them."""
        total = self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        spaced = np.arange(steps) * ((total - 1) / (steps - 1)) if steps > 1 else np.array([total - 1.0])
        self._begin(spaced.round()[::-1].astype(np.int64), device, steps)

    @stepping(PredictionSchedulerOutput, indexed=False)
    def step(
        self,
        at: Step,
        prev_timestep: int | Tensor | Literal["next"] | None = None,
        generator: Generators = None,
    ) -> Values:
        """The sample at ``prev_timestep`` (default: the training step before); draws noise except at step 0.

        ``prev_timestep="next"`` is the timestep that follows in the run.
        """
        t, run = at.t, at.plan.t
        if prev_timestep == "next":
            after = run.index(t) + 1
            prev_timestep = int(run[after]) if after < len(run) else None
        previous = t - 1 if prev_timestep is None else int(at.plan.value(prev_timestep))
        beta = float(self.betas[t]) if previous == t - 1 else None
        return self._drawn(at, self._coefficients(t, previous, beta), generator, t == 0)


class DDPMWuerstchenScheduler(Unscaled):
    """Over continuous time with a cosine schedule (Würstchen: Pernias et al., arXiv:2306.00637):
    x' = (x − β/σ·ε̂)/√(1 − β) + ς·z with β = 1 − ᾱ/ᾱ'. ``timesteps`` fall from 1 to 0, both included."""

    init_noise_sigma: float = 1.0
    _begin_initial = SchedulerMixin._begin_nothing

    def __init__(self, scaler: float = 1.0, s: float = 0.008) -> None:
        if scaler <= 0:
            raise InputError(f"scaler={scaler} must be above 0.")

    def _alpha_bar(self, t: Any) -> Any:
        """ᾱ at a tensor of times: the cosine of Nichol & Dhariwal (arXiv:2102.09672), time warped by ``scaler``."""
        scaler, s = self.config.scaler, self.config.s
        t = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
        first = math.cos(s / (1 + s) * math.pi / 2) ** 2
        return (torch.cos((t + s) / (1 + s) * (math.pi / 2)).square() / first).clamp(0.0001, 0.9999)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        device: Device = None,
    ) -> None:
        """Begin a run of so many steps, or over the given times, of which the last is where it ends."""
        if timesteps is None:
            times = torch.linspace(1.0, 0.0, step_count(num_inference_steps) + 1)
        else:
            times = torch.as_tensor(timesteps, dtype=torch.float32).cpu()
        self._begin(times, device, step_count(len(times) - 1))

    def _locate(self, timestep: Any) -> int:
        """The step nearest to a time, which is a number or a batch of equal ones."""
        plan = self._running().plan
        if isinstance(timestep, Tensor) and timestep.dim() > 0:
            timestep = timestep.flatten()[0]
        t = plan.value(timestep)
        index = min(range(len(plan.t)), key=lambda i: abs(plan.t[i] - t))
        if index + 1 == len(plan.t):
            raise InputError(f"At time {t:g} the run is over: step from `timesteps[:-1]`.")
        return index

    def previous_timestep(self, timestep: Tensor) -> Tensor:
        """The time after this one in the run, shaped as ``timestep``."""
        following = self.timesteps[self._locate(timestep) + 1]
        return following.expand_as(timestep) if isinstance(timestep, Tensor) else following

    @stepping(begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; draws noise at every step, the last included."""
        along, across, fresh = self._coefficients(at.i)
        terms = (along, at.sample), (across, at.output), (fresh, at.noise(generator))
        return (affine(*terms, dtype=at.output.dtype),)

    @once
    def _coefficients(self, i: int) -> tuple[float, float, float]:
        """The weights of the sample, the output and the noise in x'."""
        t = self._run.plan.t[i : i + 2]
        bar, following = self._alpha_bar(torch.tensor(t)).tolist()
        s, beta = level_of_alpha_bar(bar), 1 - bar / following
        mean, variance = 1 / math.sqrt(1 - beta), posterior(s, level_of_alpha_bar(following), beta)[2]
        return mean, -mean * beta / s.sigma, math.sqrt(variance) if t[1] else 0.0

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ·x0 + √(1 − ᾱ)·ε at times in [0, 1], one an item."""
        shape = (-1,) + (1,) * (original_samples.dim() - 1)
        bar = self._alpha_bar(timesteps.to(original_samples.device, torch.float32)).reshape(shape)
        noisy = bar.sqrt() * original_samples + (1 - bar).sqrt() * noise
        return noisy.to(original_samples.dtype)
