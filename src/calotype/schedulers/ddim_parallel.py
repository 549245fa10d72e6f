"""DDIM that can step from many steps at once (ParaDiGMS: Shih et al., arXiv:2305.16317)."""

from __future__ import annotations

import torch

from calotype.core.errors import InputError
from calotype.schedulers.implicit import ImplicitScheduler
from calotype.schedulers.outputs import PredictionSchedulerOutput as DDIMParallelSchedulerOutput
from calotype.schedulers.parallel import columns

__all__ = ["DDIMParallelScheduler", "DDIMParallelSchedulerOutput"]


class DDIMParallelScheduler(ImplicitScheduler):
    """DDIM, and :meth:`batch_step_no_noise` for Picard iteration over a window of steps."""

    _is_ode_scheduler = True

    def batch_step_no_noise(
        self,
        model_output: torch.Tensor,
        timesteps: torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> torch.Tensor:
        """One deterministic step for a batch whose items are each at a training step of their own, (batch,)."""
        if eta != 0:
            raise InputError(f"eta={eta} would need noise, which this step leaves to the caller: give 0.")
        self._running()
        rows = []
        for t in timesteps.tolist():
            to_clean, to_noise, from_clean, weights, _ = self._coefficients(t, eta)
            rows.append((*to_clean, *(from_clean if use_clipped_model_output else to_noise), *weights))
        x, m, divisor, along, across, under, toward, direction = columns(rows, sample)
        x0 = self._limits.apply((x * sample + m * model_output) / divisor)
        other = x0 if use_clipped_model_output else model_output
        return toward * x0 + direction * ((along * sample + across * other) / under)
