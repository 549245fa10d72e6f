"""PNDM: a linear multistep method on ε with the transfer of family A (Liu et al., arXiv:2202.09778)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import step_count
from calotype.schedulers.grid import spaced
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.run import Run
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import transfer

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

    _compatibles = SIGNAL_NOISE_FAMILY
    pndm_order = 4

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ) -> None:
        self._check(("epsilon", "v_prediction"))
        self._make_table()
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps; the Runge-Kutta warm-up needs at least 4."""
        config, total = self.config, self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        grid = spaced(config.timestep_spacing, steps, total, config.steps_offset).round()
        if config.skip_prk_steps:
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
    def ets(self) -> list[torch.Tensor]:
        """The ε that the multistep phase remembers, oldest first."""
        return list(reversed(self._run.history))

    def step(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample at the next evaluation; which phase the run is in follows from how many steps it has made."""
        if self.counter < self._warm_up():
            return self.step_prk(model_output, timestep, sample, return_dict)
        return self.step_plms(model_output, timestep, sample, return_dict)

    def step_prk(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """One evaluation of the Runge-Kutta warm-up: from the stored sample with the slope of this stage."""
        run, t, jump = self._at(timestep)
        stage, first = run.index % 4, run.index // 4 * 4  # type: ignore[operator]
        to = t - (0 if stage % 2 else jump // 2)
        if stage == 0:
            run.stage = (sample, model_output * RUNGE_KUTTA[0])
            run.history = (model_output, *run.history[:3])
            slope = model_output
        else:
            start, total = run.stage
            total = torch.add(total, model_output, alpha=RUNGE_KUTTA[stage])
            run.stage, slope = (start, total), total if stage == 3 else model_output
        result = self._transferred(run.stage[0], int(run.plan.t[first]), to, slope)
        return self._advanced(run, result, return_dict)

    def step_plms(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """One evaluation of the multistep phase."""
        run, t, jump = self._at(timestep)
        skip = self.config.skip_prk_steps
        if not skip and len(run.history) < 3:
            raise InputError(
                "step_plms needs the three warm-up steps of step_prk (12 evaluations) before it."
            )
        to = t - jump
        if skip and run.index == 1:  # the first step once more, with the mean of the slopes at both ends
            t, to = t + jump, t
            slope = affine((0.5, model_output), (0.5, run.history[0]))
            sample, run.stage = run.stage, None
        else:
            run.history = (model_output, *run.history[:3])
            if skip and run.index == 0:
                run.stage = sample
            weights = ADAMS_BASHFORTH[len(run.history) - 1]
            slope = affine(*zip(weights, run.history, strict=True))
        return self._advanced(run, self._transferred(sample, t, to, slope), return_dict)

    def _warm_up(self) -> int:
        return 0 if self.config.skip_prk_steps or self.num_inference_steps is None else 12

    def _at(self, timestep: Any) -> tuple[Run, int, int]:
        """The run, the training step as a number, and the training steps of one step."""
        run = self._running()
        if run.index is None:
            run.index = 0
        jump = self.config.num_train_timesteps // (run.plan.count or 1)
        return run, int(run.plan.value(timestep)), jump

    def _transferred(self, sample: torch.Tensor, t: int, to: int, slope: torch.Tensor) -> torch.Tensor:
        """The transfer of ``sample`` from one training step to another along ``slope``."""
        memo, kind = self._run.plan.memo, self.config.prediction_type
        if (t, to) not in memo:
            final = float(self.final_alpha_cumprod)
            level = self._level(t, final)
            toward, direction = transfer(self._level(to, final), 0.0)
            x0, eps = prediction.clean(kind, *level).weights, prediction.noise(kind, *level).weights
            memo[t, to] = toward * x0[0] + direction * eps[0], toward * x0[1] + direction * eps[1]
        along, across = memo[t, to]
        return affine((along, sample), (across, slope))

    @staticmethod
    def _advanced(run: Run, result: torch.Tensor, return_dict: bool) -> SchedulerOutput | tuple[torch.Tensor]:
        run.index += 1  # type: ignore[operator]
        return SchedulerOutput(result) if return_dict else (result,)
