"""Methods in κ on slopes at several levels: Heun's, the mean of those at both ends of a step; DPM-Solver-2, that in its
middle, also with ancestral noise; DPM-Solver++ SDE; and linear multistep (LMS), through the last ones.

Karras et al., arXiv:2206.00364; Lu et al., arXiv:2206.00927 and 2211.01095; Song et al., arXiv:2011.13456.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch

from calotype.core.brownian import BrownianNoise
from calotype.core.random import Generators
from calotype.schedulers.affine import affine, evaluate
from calotype.schedulers.exponential import interpolation_weights
from calotype.schedulers.ladders import ExplodingScheduler
from calotype.schedulers.levels import Level, transfer
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.options import LATENT, Device, Numbers, constructor, conversion
from calotype.schedulers.scheduler import SchedulerMixin
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, once, stepping


class LMSDiscreteScheduler(ExplodingScheduler):
    """x' = x + Σ d_j·∫ℓ_j(κ) dκ with the Lagrange basis ℓ_j on the last levels: Adams-Bashforth on uneven steps."""

    __init__ = constructor("TABLE CONVERTED prediction_type SPACED")
    _begin_initial = SchedulerMixin._begin_trained
    set_timesteps = ExplodingScheduler._begin_steps

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """∫ℓ_j dκ over step ``t`` for the ``current_order``-th newest of ``order`` slopes."""
        return self._weights(t, order)[current_order]

    @once
    def _weights(self, i: int, order: int) -> list[float]:
        kappa = self._run.plan.kappa
        step = kappa[i + 1] - kappa[i]
        nodes = [(kappa[i - j] - kappa[i]) / step for j in range(order)]
        return interpolation_weights(nodes, [step / (k + 1) for k in range(order)])

    @stepping(PredictionSchedulerOutput)
    def step(self, at: Step, order: int = 4) -> Values:
        """The sample one step on, with at most ``order`` slopes."""
        self._warn_unscaled()
        x0, slope = (line.of(at.sample, at.output) for line in self._lines(at.plan.kappa[at.i]))
        slopes = (slope, *at.run.history[: order - 1])
        weights = self._weights(at.i, len(slopes))
        return at.remember(slopes, affine((1.0, at.sample), *zip(weights, slopes, strict=True)), x0)


class HeunDiscreteScheduler(ExplodingScheduler):
    """Karras et al., arXiv:2206.00364, algorithm 1: two evaluations a step, one for the last (to κ = 0)."""

    order = 2

    __init__ = constructor(
        "TABLE prediction_type CONVERTED clip_sample clip_sample_range SPACED",
        clip_sample=False,
        **LATENT,
    )
    _begin_initial = SchedulerMixin._begin_trained

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        num_train_timesteps: int | None = None,
        timesteps: Numbers = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps; ``timesteps`` then has two entries a step."""
        t, kappa = self._ladder(num_inference_steps, timesteps, num_train_timesteps)
        twice = np.repeat(np.arange(len(t)), 2)[1:]
        self._begin_levels(t[twice], np.append(kappa[twice], kappa[-1]), device, len(t), torch.float32)

    @stepping(PredictionSchedulerOutput)
    def step(self, at: Step) -> Values:
        """The sample at the end of the step: provisional after its first evaluation, corrected after the second."""
        run, kappa, sample = at.run, at.plan.kappa, at.sample
        to_clean, slope = self._lines(kappa[at.i])
        x0 = to_clean.of(sample, at.output, self._limits)
        along, across, other = slope.x, slope.m, at.output
        if self._limits.active:
            along, across, other = 1 / kappa[at.i], -1 / kappa[at.i], x0
        if run.stage is None:
            step = kappa[at.i + 1] - kappa[at.i]
            ends = (affine((1 + part * along, sample), (part * across, other)) for part in (step, step / 2))
            prev_sample, halfway, x0 = evaluate(*ends, x0)
            run.stage = halfway, step
            return prev_sample, x0
        (halfway, step), run.stage = run.stage, None
        return affine((1.0, halfway), (step / 2 * along, sample), (step / 2 * across, other)), x0


class MidpointScheduler(ExplodingScheduler):
    """Base of those that look in the middle: a grid on which a caller's loop visits both evaluations.

    A plan's ``kappa`` are the levels of the evaluations, κ_0, κ_mid, κ_1, …; the public ``sigmas`` has each step's
    ends twice, as two-stage methods do.
    """

    order = 2
    _begin_initial = SchedulerMixin._begin_trained
    _precision: ClassVar[type[np.floating[Any]]] = np.float32
    _finals: ClassVar[int] = 3
    """How often ``sigmas`` shows the final level."""

    @abstractmethod
    def _middle(self, t: np.ndarray, kappa: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.dtype]:
        """The training steps, the levels in the middle of the steps to the next, and the dtype of ``timesteps``."""

    def set_timesteps(
        self, num_inference_steps: int, device: Device = None, num_train_timesteps: int | None = None
    ) -> None:
        """Begin a run of so many steps; ``timesteps`` then has two entries a step, one for the last."""
        t, kappa = self._ladder(num_inference_steps, None, num_train_timesteps, self._precision)
        kappa = kappa.astype(self._precision).astype(np.float64)
        t, middle, dtype = self._middle(t, kappa)
        steps = len(t)
        walk, ladder = np.empty(2 * steps - 1), np.empty(2 * steps)
        walk[0::2], walk[1::2] = t, sigma_to_t(middle, self._table.log_kappa)
        ladder[0:-1:2], ladder[1:-1:2], ladder[-1] = kappa[:-1], middle, kappa[-1]
        self._begin_levels(walk, ladder, device, steps, dtype)
        ends = np.repeat(kappa, [1, *[2] * (steps - 1), self._finals]).astype(np.float32)
        self._replan(sigmas=torch.from_numpy(ends))


class SecondOrderScheduler(MidpointScheduler):
    """Base of KDPM2 and its ancestral form: half an Euler step in ln κ, then a whole one with the slope there."""

    _ancestral: ClassVar[bool]

    __init__ = constructor("TABLE CONVERTED prediction_type SPACED", **LATENT)

    def _middle(self, t: np.ndarray, kappa: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.dtype]:
        """√(κ·κ'), or κ' itself where the step is one to κ_down = κ'²/κ."""
        middle = kappa[1:-1] if self._ancestral else np.sqrt(kappa[:-2] * kappa[1:-1])
        dtype = torch.float64 if conversion(self.config) else torch.float32
        return t.round() if self.config.use_karras_sigmas else t, middle, dtype

    def _advance(self, at: Step, generator: Generators = None) -> Values:
        """The sample after an evaluation and x̂0: at the midpoint, or from the step's beginning to its end."""
        run, kappa, i = at.run, at.plan.kappa, at.i
        to_clean, slope = self._lines(kappa[i])
        x0 = to_clean.of(at.sample, at.output)
        if run.stage is None:
            run.stage = at.sample
            return affine((kappa[i + 1] / kappa[i], at.sample), (1 - kappa[i + 1] / kappa[i], x0)), x0
        start, run.stage = run.stage, None
        _, down, up = transfer(Level(1.0, kappa[i - 1]), Level(1.0, kappa[i + 1]), float(self._ancestral))
        step = down - kappa[i - 1]
        terms = [(1.0, start), (step * slope.x, at.sample), (step * slope.m, at.output)]
        if self._ancestral:
            terms.append((up, at.noise(generator)))
        return affine(*terms), x0


class KDPM2DiscreteScheduler(SecondOrderScheduler):
    """Midpoint √(κ·κ'); x' = x + (κ' − κ)·slope at the midpoint."""

    _ancestral = False

    @stepping(PredictionSchedulerOutput)
    def step(self, at: Step) -> Values:
        """The sample at the midpoint after a step's first evaluation, at its end after the second."""
        return self._advance(at)


class KDPM2AncestralDiscreteScheduler(SecondOrderScheduler):
    """As KDPM2 with κ_down in the place of κ', then noise of κ_up."""

    _ancestral = True

    @stepping(PredictionSchedulerOutput)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample at the midpoint after a step's first evaluation, at its end after the second, with new noise."""
        return self._advance(at, generator)


class DPMSolverSDEScheduler(MidpointScheduler):
    """An ancestral step to the midpoint √(κ·κ'), then one over the whole step from its beginning with x̂0 from there;
    the noise is a Brownian path's."""

    _precision = np.float64
    _finals = 1

    def _prepare_path(self) -> None:
        self._prepare()
        self.noise_sampler_seed = self.config.noise_sampler_seed

    __init__ = constructor(
        "TABLE prediction_type CONVERTED noise_sampler_seed SPACED", setup=_prepare_path, **LATENT
    )

    def _middle(self, t: np.ndarray, kappa: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.dtype]:
        return t, np.sqrt(kappa[:-2] * kappa[1:-1]), torch.float64

    @stepping(PredictionSchedulerOutput, last="s_noise")
    def step(self, at: Step, s_noise: float = 1.0) -> Values:
        """The sample at the midpoint after a step's first evaluation, at its end after the second."""
        run, kappa = at.run, at.plan.kappa
        to_clean, _ = self._lines(kappa[at.i])
        x0 = to_clean.of(at.sample, at.output)
        if run.noise is None:
            positive = [level for level in kappa if level > 0]
            run.noise = BrownianNoise(at.sample, min(positive), max(positive), self.noise_sampler_seed)
        first = at.i if run.stage is None else at.i - 1
        start, run.stage = (at.sample, at.sample) if run.stage is None else (run.stage, None)
        s, t = Level(1.0, kappa[first]), Level(1.0, kappa[at.i + 1])
        _, down, up = transfer(s, t, 1.0)
        terms = [(down / s.sigma, start), (1 - down / s.sigma, x0)]
        if t.sigma > 0:
            terms.append((s_noise * up, run.noise(*self._queried(first, at.i + 1))))
        else:
            run.stage = None
        return affine(*terms), x0

    @once
    def _queried(self, first: int, last: int) -> tuple[float, float]:
        """The levels of a step as the path is asked for them: by way of λ in float32, since a path is rough and shows
        a difference in the seventh digit."""
        kappa, half = self._run.plan.kappa, last == first + 1
        ends = [first, min(last + 1, len(kappa) - 1) if half else last]
        t = torch.tensor([kappa[k] for k in ends], dtype=torch.float32).log().neg()
        to = t[0] + 0.5 * (t[1] - t[0]) if half else t[1]
        return float(t[0].neg().exp()), float(to.neg().exp())
