"""DDIM over CogVideoX's shifted noise table (Yang et al., arXiv:2408.06072)."""

from __future__ import annotations

import torch

from calotype.core.random import Generators
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.outputs import PredictionSchedulerOutput as DDIMSchedulerOutput
from calotype.schedulers.shifted_table import ShiftedTableScheduler


class CogVideoXDDIMScheduler(ShiftedTableScheduler):
    """x' = σ'/σ·x + (α' − α·σ'/σ)·x̂0."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on. The method is deterministic: ``eta`` to ``variance_noise`` have no effect."""
        plan = self._running().plan
        t = int(plan.value(timestep))
        if t not in plan.memo:
            s, to = self._ends(t)
            along = to.sigma / s.sigma
            plan.memo[t] = (
                prediction.clean(self.config.prediction_type, *s),
                along,
                to.alpha - s.alpha * along,
            )
        to_clean, along, toward = plan.memo[t]
        x0 = to_clean.of(sample, model_output)
        prev_sample = affine((along, sample), (toward, x0))
        return DDIMSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
