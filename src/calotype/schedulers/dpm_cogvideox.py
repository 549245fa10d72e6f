"""SDE-DPM-Solver++ of second order over CogVideoX's shifted noise table (Lu et al., arXiv:2211.01095)."""

from __future__ import annotations

import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.exponential import exponential_update
from calotype.schedulers.outputs import PredictionSchedulerOutput as DDIMSchedulerOutput
from calotype.schedulers.shifted_table import ShiftedTableScheduler


class CogVideoXDPMScheduler(ShiftedTableScheduler):
    """The update of family D with τ = 1 over x̂0 and that of the step before, which the caller keeps."""

    def step(
        self,
        model_output: torch.Tensor,
        old_pred_original_sample: torch.Tensor | None,
        timestep: int,
        timestep_back: int | None,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on and x̂0.

        ``old_pred_original_sample`` is the x̂0 of the step before, at ``timestep_back``; without them the step is of
        first order, as is the one to the clean sample. Second-order steps draw twice and use the second. ``eta``,
        ``use_clipped_model_output`` and ``variance_noise`` have no effect.
        """
        plan = self._running().plan
        t = int(plan.value(timestep))
        s, to = self._ends(t)
        x0 = prediction.clean(self.config.prediction_type, *s).of(sample, model_output)
        z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        last = t < self.config.num_train_timesteps // (plan.count or 1)
        others, known = [], [x0]
        if old_pred_original_sample is not None and not last:
            back = self._level(int(plan.value(timestep_back)))
            if back.alpha > 0:  # else it is infinitely far and has no weight
                others, known = [back], [x0, old_pred_original_sample]
            z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        update = exponential_update(s, to, others, data=True, tau=1.0, rule="midpoint")
        terms = zip(update.predictions, known, strict=True)
        prev_sample = affine((update.sample, sample), *terms, (update.noise, z))
        return DDIMSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
