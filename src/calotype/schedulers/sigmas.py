"""Schedulers that walk along a list of noise levels by the index of the step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.schedulers.affine import affine
from calotype.schedulers.coordinates import Coordinates
from calotype.schedulers.grid import Grid
from calotype.schedulers.indexed import IndexedScheduler
from calotype.schedulers.run import Plan, Run

logger = logging.getLogger(__name__)


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

    def _begin_levels(
        self, timesteps: torch.Tensor, sigmas: torch.Tensor, device: Any, count: int | None
    ) -> None:
        kappa = tuple(sigmas.tolist())
        levels = tuple(map(self._coordinates.level, kappa))
        self._start(Plan(timesteps.to(device), sigmas, count, tuple(timesteps.tolist()), kappa, levels))

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels of the run, the final one included; float32 on the CPU."""
        return self._run.plan.sigmas  # type: ignore[return-value]

    @sigmas.setter
    def sigmas(self, value: torch.Tensor) -> None:
        run = self._run
        kappa = tuple(value.tolist())
        levels = tuple(map(self._coordinates.level, kappa))
        run.plan = self._plan = replace(run.plan, sigmas=value, kappa=kappa, levels=levels, memo={})

    def _indices(self, timesteps: torch.Tensor) -> list[int]:
        """The steps at which items are noised: by their timestep, or where the run stands or begins."""
        run = self._run
        if run.begin is None:
            return [run.plan.index(t) for t in timesteps]
        return [run.begin if run.index is None else run.index] * timesteps.shape[0]

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Clean samples noised to the levels of ``timesteps`` (elements of the schedule, one an item)."""
        alpha, sigma = self._weights(self._run.plan.levels, self._indices(timesteps), original_samples)
        if isinstance(alpha, float):
            return affine((alpha, original_samples), (sigma, noise))
        return alpha * original_samples + sigma * noise

    @staticmethod
    def _weights(levels: Sequence[Any], indices: list[int], like: torch.Tensor) -> tuple[Any, Any]:
        """α and σ at the steps: floats if all are the same, else tensors shaped to multiply ``like``."""
        if len(set(indices)) == 1:
            return levels[indices[0]]
        shape = (-1,) + (1,) * (like.dim() - 1)
        pairs = torch.tensor([levels[i] for i in indices], dtype=torch.float64)
        alpha, sigma = pairs.to(like.device, like.dtype).unbind(1)
        return alpha.reshape(shape), sigma.reshape(shape)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The network's input at the next step: the sample, scaled as the coordinates say."""
        run = self._run
        run.scaled = True
        if not self._coordinates.scales_input:
            return sample
        run, index = self._locate(timestep)
        return sample * self._coordinates.input_scale(run.plan.kappa[index])

    @property
    def is_scale_input_called(self) -> bool:
        """Whether this run has used ``scale_model_input``."""
        return self._run.scaled

    def _refuse_index(self, timestep: Any) -> None:
        """Raise ``InputError`` for whole numbers, which are more likely a loop's counter than a timestep."""
        if isinstance(timestep, int) or (
            isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()
        ):
            raise InputError(
                f"{type(self).__name__} takes the elements of `scheduler.timesteps`, which are not integers; "
                f"did you pass the loop's counter?"
            )

    def _warn_unscaled(self, run: Run) -> None:
        if not run.scaled:
            run.scaled = True
            logger.warning(
                "%s.step was called without `scale_model_input` before it: the network's input has to be scaled "
                "for the result to be right.",
                type(self).__name__,
            )
