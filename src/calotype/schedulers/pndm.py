"""PNDM and iPNDM: linear multistep methods on ε with the transfer of family A.

Liu et al., arXiv:2202.09778; Zhang & Chen, arXiv:2204.13902, who let the order rise from one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers.affine import Value, affine
from calotype.schedulers.levels import Level
from calotype.schedulers.options import LEADING, Device, choice, constructor, step_count
from calotype.schedulers.scheduler import SchedulerMixin, Unscaled, of_run
from calotype.schedulers.sigmas import IndexedScheduler
from calotype.schedulers.stepping import SchedulerOutput, Step, Values, once, stepping
from calotype.schedulers.table import TableScheduler

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest-first slopes, by how many there are."""

RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def multistep_slope(slopes: Any) -> Value:
    """ε̄ of the newest-first slopes."""
    return affine(*zip(ADAMS_BASHFORTH[len(slopes) - 1], slopes, strict=True))


class PNDMScheduler(TableScheduler):
    """Three pseudo Runge-Kutta steps of four evaluations each, then pseudo linear multistep of order 4.

    With ``skip_prk_steps`` the warm-up is instead one repeated step, and the order rises by one a step.
    """

    pndm_order = 4

    __init__ = constructor(
        "TABLE skip_prk_steps set_alpha_to_one prediction_type timestep_spacing steps_offset",
        set_alpha_to_one=False,
        prediction_type=choice("epsilon", "v_prediction"),
        timestep_spacing=LEADING,
    )

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps; the Runge-Kutta warm-up needs at least 4."""
        total = self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        grid = self._spaced(steps)
        if self.config.skip_prk_steps:
            timesteps = np.concatenate([grid[:2], grid[1:]]) if steps > 1 else grid
        elif steps < self.pndm_order:
            raise InputError(
                f"num_inference_steps={steps} is too few for the Runge-Kutta warm-up: give at least "
                f"{self.pndm_order}, or set skip_prk_steps=True."
            )
        else:  # each warm-up step visits t, the midpoint twice and the next t
            middle = grid[1:4] + total // steps // 2
            warm = np.stack([grid[:3], middle, middle, grid[1:4]], axis=1).flatten()
            timesteps = np.concatenate([warm, grid[3:]])
        self._begin(timesteps, device, steps)

    @property
    def prk_timesteps(self) -> np.ndarray:
        """The evaluations of the Runge-Kutta warm-up."""
        return np.array(self._run.plan.t[: self._warm_up()], dtype=np.int64)

    @property
    def plms_timesteps(self) -> np.ndarray:
        """The evaluations of the multistep phase."""
        return np.array(self._run.plan.t[self._warm_up() :], dtype=np.int64)

    @property
    def counter(self) -> int:
        """How many evaluations the run has used."""
        return self._run.index or 0

    @property
    def ets(self) -> list[Tensor]:
        """The ε that the multistep phase remembers, oldest first."""
        return list(reversed(self._run.history))

    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The sample at the next evaluation; which phase the run is in follows from how many steps it has made."""
        phase = self.step_prk if self.counter < self._warm_up() else self.step_plms
        return phase(model_output, timestep, sample, return_dict)

    @stepping(begun=True)
    def step_prk(self, at: Step) -> Values:
        """One evaluation of the Runge-Kutta warm-up: from the stored sample with the slope of this stage."""
        run, output, stage = at.run, at.output, at.i % 4
        if stage == 0:
            run.stage = (at.sample, output * RUNGE_KUTTA[0])
            run.history = (output, *run.history[:3])
        else:
            start, total = run.stage
            run.stage = start, torch.add(total, output, alpha=RUNGE_KUTTA[stage])
        start, total = run.stage
        end = at.t - (0 if stage % 2 else self._jump // 2)
        return self._transferred(start, int(at.plan.t[at.i - stage]), end, total if stage == 3 else output)

    @stepping(begun=True)
    def step_plms(self, at: Step) -> Values:
        """One evaluation of the multistep phase."""
        run, t, skip = at.run, at.t, self.config.skip_prk_steps
        if not skip and len(run.history) < 3:
            raise InputError(
                "step_plms needs the three warm-up steps of step_prk (12 evaluations) before it."
            )
        if skip and at.i == 1:  # the first step once more, with the mean of the slopes at both ends
            slope = affine((0.5, at.output), (0.5, run.history[0]))
            sample, run.stage = run.stage, None
            return self._transferred(sample, t + self._jump, t, slope)
        run.history = (at.output, *run.history[:3])
        if skip and at.i == 0:
            run.stage = at.sample
        return self._transferred(at.sample, t, t - self._jump, multistep_slope(run.history))

    def _warm_up(self) -> int:
        return 0 if self.config.skip_prk_steps or self.num_inference_steps is None else 12

    def _locate(self, timestep: Any) -> int:
        return self._run.index or 0

    def _transferred(self, sample: Tensor, t: int, to: int, slope: Value) -> Values:
        """The transfer of ``sample`` from one training step to another along ``slope``."""
        along, across = self._coefficients(t, to)
        return (affine((along, sample), (across, slope)),)

    @once
    def _coefficients(self, t: int, to: int) -> tuple[float, float]:
        (toward, direction), said = self._level(to), self._lines(t)
        pairs = zip(said.clean.weights, said.noise.weights, strict=True)
        along, across = (toward * x0 + direction * eps for x0, eps in pairs)
        return along, across


class IPNDMScheduler(Unscaled, IndexedScheduler):
    """ε̄ = Adams-Bashforth of the last ε̂ = σ·x + α·F, and the transfer along it, over σ = sin²(π·u/2), u from 1 to 0."""

    init_noise_sigma: float = 1.0
    pndm_order = 4

    __init__ = constructor("num_train_timesteps trained_betas", setup=lambda self: None)
    _begin_initial = SchedulerMixin._begin_trained
    betas = of_run("plan.sigmas", "σ of the run's levels, the final one included.")

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps; ``trained_betas`` has their σ and the last one's."""
        steps = step_count(num_inference_steps)
        if self.config.trained_betas is not None:
            sigma = torch.tensor(self.config.trained_betas, dtype=torch.float32)
        else:
            u = torch.cat([torch.linspace(1, 0, steps + 1)[:-1], torch.zeros(1)])
            sigma = torch.sin(u * torch.pi / 2) ** 2
        alpha = (1.0 - sigma**2) ** 0.5
        timesteps = (torch.atan2(sigma, alpha) / torch.pi * 2)[:-1]
        levels = tuple(map(Level, alpha.tolist(), sigma.tolist()))
        self._begin(timesteps, device, steps, sigma, levels=levels)

    @property
    def alphas(self) -> Tensor:
        """α of the run's levels."""
        return (1.0 - self.betas**2) ** 0.5

    @property
    def ets(self) -> list[Tensor]:
        """The ε̂ that the run remembers, oldest first."""
        return list(reversed(self._run.history))

    @stepping()
    def step(self, at: Step) -> Values:
        """The sample one step on."""
        s, to = at.plan.levels[at.i : at.i + 2]
        known = (affine((s.sigma, at.sample), (s.alpha, at.output)), *at.run.history[:3])
        slope = multistep_slope(known)
        clean = affine((1.0, at.sample), (-s.sigma, slope), divisor=max(s.alpha, 1e-8))
        return at.remember(known, affine((to.alpha, clean), (to.sigma, slope)))
