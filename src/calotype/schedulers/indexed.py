"""Schedulers that know where a run stands by the index of its next step."""

from __future__ import annotations

from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.schedulers.run import Run
from calotype.schedulers.scheduler import SchedulerMixin


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

    def index_for_timestep(self, timestep: Any, schedule_timesteps: torch.Tensor | None = None) -> int:
        """The index of a timestep in the schedule, of several equal ones the second."""
        given = None if schedule_timesteps is None else schedule_timesteps.tolist()
        return self._run.plan.index(timestep, given)

    def _locate(self, timestep: Any) -> tuple[Run, int]:
        """The current run and the index of its next step; ``timestep`` is only read to find the first."""
        run = self._run
        index = run.index
        if index is None:
            index = run.index = run.plan.index(timestep) if run.begin is None else run.begin
        steps = len(run.plan.kappa) - 1 if run.plan.kappa else len(run.plan.t)
        if index >= steps:
            raise InputError(
                f"The run is over after its {steps} steps: call `set_timesteps` to begin another."
            )
        return run, index
