"""Schedulers that know where a run stands by the index of its next step, most of them along a list of levels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers.affine import combined
from calotype.schedulers.coordinates import Coordinates
from calotype.schedulers.grid import Grid
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SchedulerMixin

logger = logging.getLogger(__name__)


class IndexedScheduler(SchedulerMixin):
    """Base of the methods that find their step once, by the first timestep or as the caller says, and then count."""

    @property
    def step_index(self) -> int | None:
        """The index of the next step; None before the first."""
        return self._run.index

    @property
    def begin_index(self) -> int | None:
        """The step that the run begins at, where the caller has set it."""
        return self._run.begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at this step (image-to-image); call it between ``set_timesteps`` and the first step."""
        self._run.begin = begin_index

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The index of a timestep in the schedule, of several equal ones the second."""
        given = None if schedule_timesteps is None else schedule_timesteps.tolist()
        return self._run.plan.index(timestep, given)

    def _locate(self, timestep: Any) -> int:
        """The index of the run's next step; ``timestep`` is only read to find the first."""
        run = self._run
        index = run.index
        if index is None:
            index = run.index = run.plan.index(timestep) if run.begin is None else run.begin
        steps = len(run.plan.kappa) - 1 if run.plan.kappa else len(run.plan.t)
        if index >= steps:
            raise InputError(
                f"The run is over after its {steps} steps: call `set_timesteps` to begin another."
            )
        return index


class SigmaScheduler(IndexedScheduler):
    """Base of the methods that walk along a list of noise levels (``sigmas``) by the index of the step."""

    _coordinates: Coordinates

    def _begin_grid(
        self, grid: Grid, device: Any, count: int | None, dtype: torch.dtype | None = None
    ) -> None:
        """Begin a run over a grid; ``dtype`` is that of the timesteps (default: the grid's)."""
        timesteps = torch.from_numpy(np.array(grid.timesteps)).to(dtype)
        self._begin_levels(
            timesteps, torch.from_numpy(np.array(grid.sigmas, dtype=np.float32)), device, count
        )

    def _begin_levels(self, timesteps: Tensor, sigmas: Tensor, device: Any, count: int | None) -> None:
        kappa = tuple(sigmas.tolist())
        levels = tuple(map(self._coordinates.level, kappa))
        self._start(Plan(timesteps.to(device), sigmas, count, tuple(timesteps.tolist()), kappa, levels))

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of the run, the final one included; float32 on the CPU."""
        return self._run.plan.sigmas  # type: ignore[return-value]

    @sigmas.setter
    def sigmas(self, value: Tensor) -> None:
        run = self._run
        kappa = tuple(value.tolist())
        levels = tuple(map(self._coordinates.level, kappa))
        run.plan = self._plan = replace(run.plan, sigmas=value, kappa=kappa, levels=levels, memo={})

    def _indices(self, timesteps: Tensor) -> list[int]:
        """The steps at which items are noised: by their timestep, or where the run stands or begins."""
        run = self._run
        if run.begin is None:
            return [run.plan.index(t) for t in timesteps]
        return [run.begin if run.index is None else run.index] * timesteps.shape[0]

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean samples noised to the levels of ``timesteps`` (elements of the schedule, one an item)."""
        alpha, sigma = self._weights(self._run.plan.levels, self._indices(timesteps), original_samples)
        if isinstance(alpha, float):
            return combined((alpha, original_samples), (sigma, noise))
        return alpha * original_samples + sigma * noise

    @staticmethod
    def _weights(levels: Sequence[Any], indices: list[int], like: Tensor) -> tuple[Any, Any]:
        """α and σ at the steps: floats if all are the same, else tensors shaped to multiply ``like``."""
        if len(set(indices)) == 1:
            return levels[indices[0]]
        shape = (-1,) + (1,) * (like.dim() - 1)
        pairs = torch.tensor([levels[i] for i in indices], dtype=torch.float64)
        alpha, sigma = pairs.to(like.device, like.dtype).unbind(1)
        return alpha.reshape(shape), sigma.reshape(shape)

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """The network's input at the next step: the sample, scaled as the coordinates say."""
        run = self._run
        run.scaled = True
        if self._coordinates.data is None:
            return sample
        return sample * self._coordinates.input_scale(run.plan.kappa[self._locate(timestep)])

    @property
    def is_scale_input_called(self) -> bool:
        """Whether this run has used ``scale_model_input``."""
        return self._run.scaled

    def _refuse_index(self, timestep: Any) -> None:
        """Raise ``InputError`` for whole numbers, which are more likely a loop's counter than a timestep."""
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise InputError(
                f"{type(self).__name__} takes the elements of `scheduler.timesteps`, which are not integers; "
                f"did you pass the loop's counter?"
            )

    def _warn_unscaled(self) -> None:
        run = self._run
        if not run.scaled:
            run.scaled = True
            logger.warning(
                "%s.step was called without `scale_model_input` before it: the network's input has to be scaled "
                "for the result to be right.",
                type(self).__name__,
            )
