"""Schedulers that know where a run stands by the index of its next step, most of them along a list of levels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers.affine import combined
from calotype.schedulers.levels import Coordinates, Level
from calotype.schedulers.scheduler import SchedulerMixin, of_run
from calotype.schedulers.table import columns

logger = logging.getLogger(__name__)


class IndexedScheduler(SchedulerMixin):
    """Base of the methods that find their step once, by the first timestep or as the caller says, and then count."""

    step_index = of_run("index", "The index of the next step; None before the first.")
    begin_index = of_run("begin", "The step that the run begins at, where the caller has set it.")

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

    is_scale_input_called = of_run("scaled", "Whether this run has used ``scale_model_input``.")

    def _begin_levels(
        self,
        timesteps: np.ndarray | Tensor,
        sigmas: np.ndarray | Tensor,
        device: Any = None,
        count: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Begin a run over timesteps, of ``dtype``, along levels of which the last is the final one. Arrays of levels
        are cast to float32."""
        t = timesteps if isinstance(timesteps, Tensor) else torch.from_numpy(np.array(timesteps))
        levels = sigmas if isinstance(sigmas, Tensor) else torch.from_numpy(np.array(sigmas, np.float32))
        self._begin(t.to(dtype), device, count, levels, **self._meaning(levels))

    def _meaning(self, sigmas: Tensor) -> dict[str, tuple[Any, ...]]:
        kappa = tuple(sigmas.tolist())
        return {"kappa": kappa, "levels": tuple(map(self._coordinates.level, kappa))}

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of the run, the final one included; float32 on the CPU."""
        return self._run.plan.sigmas  # type: ignore[return-value]

    @sigmas.setter
    def sigmas(self, value: Tensor) -> None:
        self._replan(sigmas=value, **self._meaning(value))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean samples noised to the levels of ``timesteps`` (elements of the schedule, one an item; where the caller
        has set the step that the run begins at, to that of the next)."""
        run = self._run
        if run.begin is None:
            indices = [run.plan.index(t) for t in timesteps]
        else:
            indices = [run.begin if run.index is None else run.index]
        return self._mixed(run.plan.levels, indices, original_samples, noise)

    @staticmethod
    def _mixed(levels: Sequence[Level], indices: list[int], x: Tensor, y: Tensor) -> Tensor:
        """α·x + σ·y at the levels of the indices, one an item."""
        if len(set(indices)) == 1:
            alpha, sigma = levels[indices[0]]
            return combined((alpha, x), (sigma, y))
        a, b = columns([levels[i] for i in indices], x)
        return a * x + b * y

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """The network's input at the next step: the sample, scaled as the coordinates say."""
        run, data = self._run, self._coordinates.data
        run.scaled = True
        if data is None:
            return sample
        return sample * (run.plan.kappa[self._locate(timestep)] ** 2 + data**2) ** -0.5

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
