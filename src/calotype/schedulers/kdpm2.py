"""Steps with an evaluation in the middle: DPM-Solver-2 in κ, the same with ancestral noise, and DPM-Solver++ SDE.

Karras et al., arXiv:2206.00364; Lu et al., arXiv:2206.00927 and 2211.01095; Song et al., arXiv:2011.13456.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine
from calotype.core.brownian import BrownianNoise
from calotype.schedulers.checks import conversion, step_count
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.grid import Grid
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.options import CONVERTED, SPACED, TABLE, Device, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.stepping import stepping
from calotype.schedulers.transfer import Level, fresh_noise, transfer


class MidpointScheduler(ExplodingScheduler):
    """Base of the three: a grid on which a caller's loop visits both evaluations.

    A plan's ``kappa`` are the levels of the evaluations, κ_0, κ_mid, κ_1, …; the public ``sigmas`` has each step's
    ends twice, as two-stage methods do.
    """

    order = 2

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)  # type: ignore[attr-defined]

    def _begin_stages(
        self,
        t: np.ndarray,
        kappa: np.ndarray,
        middle: np.ndarray,
        device: Any,
        dtype: torch.dtype,
        finals: int,
    ) -> None:
        """Begin a run over steps from ``kappa`` to the next with evaluations at ``middle``; the last step has none.

        ``sigmas`` shows the ends of the steps, each twice, and the final level ``finals`` times.
        """
        steps = len(t)
        walk, levels = np.empty(2 * steps - 1), np.empty(2 * steps)
        walk[0::2], walk[1::2] = t, sigma_to_t(middle, self._table.log_kappa)
        levels[0:-1:2], levels[1:-1:2], levels[-1] = kappa[:-1], middle, kappa[-1]
        self._begin_grid(Grid(walk, levels), device, steps, dtype)
        ends = np.repeat(kappa, [1, *[2] * (steps - 1), finals]).astype(np.float32)
        self._start(replace(self._plan, sigmas=torch.from_numpy(ends)))


class SecondOrderScheduler(MidpointScheduler):
    """Base of KDPM2 and its ancestral form: half an Euler step in ln κ, then a whole one with the slope there."""

    _ancestral: ClassVar[bool]

    __init__ = constructor(
        f"{TABLE} {CONVERTED} prediction_type {SPACED}",
        setup=MidpointScheduler._make_table,
        beta_start=0.00085,
        beta_end=0.012,
    )

    def set_timesteps(
        self, num_inference_steps: int, device: Device = None, num_train_timesteps: int | None = None
    ) -> None:
        """Begin a run of so many steps; ``timesteps`` then has two entries a step, one for the last.

        The midpoint is √(κ·κ'), or κ' itself where the step is one to κ_down = κ'²/κ.
        """
        t, kappa = self._ladder(step_count(num_inference_steps), None, num_train_timesteps)
        t = t.round() if self.config.use_karras_sigmas else t
        kappa = kappa.astype(np.float32)
        ends = kappa.astype(np.float64)
        middle = ends[1:-1] if self._ancestral else np.sqrt(ends[:-2] * ends[1:-1])
        dtype = torch.float64 if conversion(self.config) else torch.float32
        self._begin_stages(t, kappa, middle, device, dtype, finals=3)

    def _advance(
        self, run: Run, i: int, sample: Tensor, output: Tensor, target: float
    ) -> tuple[Value, Value]:
        """The sample after evaluation ``i`` and x̂0: at the midpoint, or from the step's beginning to ``target``."""
        kappa, kind = run.plan.kappa, self.config.prediction_type
        x0 = self._clean(kind, kappa[i]).of(sample, output)
        if run.stage is None:
            run.stage = sample
            return affine((kappa[i + 1] / kappa[i], sample), (1 - kappa[i + 1] / kappa[i], x0)), x0
        start, run.stage = run.stage, None
        along, across = self._slope(kind, kappa[i]).weights
        step = target - kappa[i - 1]
        return affine((1.0, start), (step * along, sample), (step * across, output)), x0


class KDPM2DiscreteScheduler(SecondOrderScheduler):
    """Midpoint √(κ·κ'); x' = x + (κ' − κ)·slope at the midpoint."""

    _ancestral = False

    @stepping(PredictionSchedulerOutput)
    def step(self, run: Run, i: int, output: Tensor, sample: Tensor) -> tuple[Value, Value]:
        """The sample at the midpoint after a step's first evaluation, at its end after the second."""
        return self._advance(run, i, sample, output, run.plan.kappa[i + 1])


class KDPM2AncestralDiscreteScheduler(SecondOrderScheduler):
    """As KDPM2 with κ_down in the place of κ', then noise of κ_up."""

    _ancestral = True

    @stepping(PredictionSchedulerOutput)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Value, Value]:
        """The sample at the midpoint after a step's first evaluation, at its end after the second, with new noise."""
        if run.stage is None:
            return self._advance(run, i, sample, output, 0.0)
        s, t = (Level(1.0, kappa) for kappa in (run.plan.kappa[i - 1], run.plan.kappa[i + 1]))
        up = fresh_noise(s, t, 1.0)
        prev_sample, x0 = self._advance(run, i, sample, output, transfer(t, up)[1])
        z = randn_tensor(output.shape, generator, output.device, output.dtype)
        return affine((1.0, prev_sample), (up, z)), x0


class DPMSolverSDEScheduler(MidpointScheduler):
    """An ancestral step to the midpoint √(κ·κ'), then one over the whole step from its beginning with x̂0 from there;
    the noise is a Brownian path's."""

    def _prepare(self) -> None:
        self._make_table()
        self.noise_sampler_seed = self.config.noise_sampler_seed

    __init__ = constructor(
        f"{TABLE} prediction_type {CONVERTED} noise_sampler_seed {SPACED}",
        setup=_prepare,
        beta_start=0.00085,
        beta_end=0.012,
    )

    def set_timesteps(
        self, num_inference_steps: int, device: Device = None, num_train_timesteps: int | None = None
    ) -> None:
        """Begin a run of so many steps; ``timesteps`` then has two entries a step, one for the last."""
        t, kappa = self._ladder(step_count(num_inference_steps), None, num_train_timesteps, np.float64)
        self._begin_stages(t, kappa, np.sqrt(kappa[:-2] * kappa[1:-1]), device, torch.float64, finals=1)

    @stepping(PredictionSchedulerOutput, last="s_noise")
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, s_noise: float = 1.0
    ) -> tuple[Value, Value]:
        """The sample at the midpoint after a step's first evaluation, at its end after the second."""
        plan = run.plan
        x0 = self._clean(self.config.prediction_type, plan.kappa[i]).of(sample, output)
        if run.noise is None:
            positive = [kappa for kappa in plan.kappa if kappa > 0]
            run.noise = BrownianNoise(sample, min(positive), max(positive), self.noise_sampler_seed)
        first = i if run.stage is None else i - 1
        start, run.stage = (sample, sample) if run.stage is None else (run.stage, None)
        s, t = (Level(1.0, plan.kappa[k]) for k in (first, i + 1))
        up = fresh_noise(s, t, 1.0)
        kept = transfer(t, up)[1] / s.sigma
        prev_sample = affine((kept, start), (1 - kept, x0))
        if t.sigma > 0:
            z = run.noise(*self._queried(plan, first, i + 1))
            prev_sample = affine((1.0, prev_sample), (s_noise * up, z))
        else:
            run.stage = None
        return prev_sample, x0

    @staticmethod
    def _queried(plan: Plan, first: int, last: int) -> tuple[float, float]:
        """The levels of a step as the path is asked for them: by way of λ in float32, since a path is rough and shows
        a difference in the seventh digit."""
        if (first, last) not in plan.memo:
            ends = [first, last if last > first + 1 else min(last + 1, len(plan.kappa) - 1)]
            t = torch.tensor([plan.kappa[k] for k in ends], dtype=torch.float32).log().neg()
            to = t[1] if last > first + 1 else t[0] + 0.5 * (t[1] - t[0])
            plan.memo[first, last] = float(t[0].neg().exp()), float(to.neg().exp())
        return plan.memo[first, last]
