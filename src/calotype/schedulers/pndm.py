"""PNDM and iPNDM: linear multistep methods on ε with the transfer of family A.

Liu et al., arXiv:2202.09778; Zhang & Chen, arXiv:2204.13902, who let the order rise from one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers import prediction
from calotype.schedulers.affine import Value, affine, evaluate
from calotype.schedulers.checks import step_count
from calotype.schedulers.options import TABLE, Device, choice, constructor
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.sigmas import IndexedScheduler
from calotype.schedulers.stepping import stepping
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import Level, transfer

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest-first slopes, by how many there are."""

RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDMScheduler(TableScheduler):
    """Three pseudo Runge-Kutta steps of four evaluations each, then pseudo linear multistep of order 4.

    With ``skip_prk_steps`` the warm-up is instead one repeated step, and the order rises by one a step.
    """

    pndm_order = 4

    __init__ = constructor(
        f"{TABLE} skip_prk_steps set_alpha_to_one prediction_type timestep_spacing steps_offset",
        setup=TableScheduler._make_table,
        set_alpha_to_one=False,
        prediction_type=choice("epsilon", "v_prediction"),
        timestep_spacing=choice("leading", "linspace", "trailing"),
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
        else:
            # each warm-up step visits t, the midpoint twice and the next t
            half = total // steps // 2
            warm = [
                t for i in range(3) for t in (grid[i], grid[i + 1] + half, grid[i + 1] + half, grid[i + 1])
            ]
            timesteps = np.concatenate([warm, grid[3:]])
        self._begin_table(timesteps, device, steps)

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
        if self.counter < self._warm_up():
            return self.step_prk(model_output, timestep, sample, return_dict)
        return self.step_plms(model_output, timestep, sample, return_dict)

    def step_prk(
        self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One evaluation of the Runge-Kutta warm-up: from the stored sample with the slope of this stage."""
        run, t = self._at(timestep)
        stage, first = run.index % 4, run.index // 4 * 4  # type: ignore[operator]
        to = t - (0 if stage % 2 else self._jump // 2)
        if stage == 0:
            run.stage = (sample, model_output * RUNGE_KUTTA[0])
            run.history = (model_output, *run.history[:3])
            slope = model_output
        else:
            start, total = run.stage
            total = torch.add(total, model_output, alpha=RUNGE_KUTTA[stage])
            run.stage, slope = (start, total), total if stage == 3 else model_output
        return self._transferred(run, run.stage[0], int(run.plan.t[first]), to, slope, return_dict)

    def step_plms(
        self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One evaluation of the multistep phase."""
        run, t = self._at(timestep)
        skip = self.config.skip_prk_steps
        if not skip and len(run.history) < 3:
            raise InputError(
                "step_plms needs the three warm-up steps of step_prk (12 evaluations) before it."
            )
        to = t - self._jump
        if skip and run.index == 1:  # the first step once more, with the mean of the slopes at both ends
            t, to = t + self._jump, t
            slope = affine((0.5, model_output), (0.5, run.history[0]))
            sample, run.stage = run.stage, None
        else:
            run.history = (model_output, *run.history[:3])
            if skip and run.index == 0:
                run.stage = sample
            weights = ADAMS_BASHFORTH[len(run.history) - 1]
            slope = affine(*zip(weights, run.history, strict=True))
        return self._transferred(run, sample, t, to, slope, return_dict)

    def _warm_up(self) -> int:
        return 0 if self.config.skip_prk_steps or self.num_inference_steps is None else 12

    def _at(self, timestep: Any) -> tuple[Run, int]:
        """The run, and the training step as a number."""
        run = self._running()
        if run.index is None:
            run.index = 0
        return run, int(run.plan.value(timestep))

    def _transferred(
        self, run: Run, sample: Tensor, t: int, to: int, slope: Value, return_dict: bool
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The transfer of ``sample`` from one training step to another along ``slope``, and on to the next."""
        memo, kind = run.plan.memo, self.config.prediction_type
        if (t, to) not in memo:
            level = self._level(t)
            toward, direction = transfer(self._level(to), 0.0)
            x0, eps = prediction.clean(kind, *level).weights, prediction.noise(kind, *level).weights
            memo[t, to] = toward * x0[0] + direction * eps[0], toward * x0[1] + direction * eps[1]
        along, across = memo[t, to]
        values = evaluate(affine((along, sample), (across, slope)))
        run.index += 1  # type: ignore[operator]
        return SchedulerOutput(*values) if return_dict else values


class IPNDMScheduler(IndexedScheduler):
    """ε̄ = Adams-Bashforth of the last ε̂ = σ·x + α·F, and the transfer along it, over σ = sin²(π·u/2), u from 1 to 0."""

    init_noise_sigma: float = 1.0
    pndm_order = 4

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)

    __init__ = constructor("num_train_timesteps trained_betas", setup=lambda self: None)

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
        levels = tuple(Level(*pair) for pair in zip(alpha.tolist(), sigma.tolist(), strict=True))
        self._start(Plan(timesteps.to(device), sigma, steps, tuple(timesteps.tolist()), levels=levels))

    @property
    def betas(self) -> Tensor:
        """σ of the run's levels, the final one included."""
        return self._run.plan.sigmas  # type: ignore[return-value]

    @property
    def alphas(self) -> Tensor:
        """α of the run's levels."""
        return (1.0 - self.betas**2) ** 0.5

    @property
    def ets(self) -> list[Tensor]:
        """The ε̂ that the run remembers, oldest first."""
        return list(reversed(self._run.history))

    def scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The network's input: the sample itself."""
        return sample

    @stepping()
    def step(self, run: Run, i: int, output: Tensor, sample: Tensor) -> tuple[Value]:
        """The sample one step on."""
        s, to = run.plan.levels[i : i + 2]
        known = (affine((s.sigma, sample), (s.alpha, output)), *run.history[:3])
        slope = affine(*zip(ADAMS_BASHFORTH[len(known) - 1], known, strict=True))
        clean = affine((1.0, sample), (-s.sigma, slope), divisor=max(s.alpha, 1e-8))
        prev_sample, *run.history = evaluate(affine((to.alpha, clean), (to.sigma, slope)), *known)
        return (prev_sample,)
