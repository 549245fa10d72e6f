"""DDPM whose mean can be taken at many steps at once (ParaDiGMS: Shih et al., arXiv:2305.16317)."""

from __future__ import annotations

import torch

from calotype.schedulers.outputs import PredictionSchedulerOutput as DDPMParallelSchedulerOutput
from calotype.schedulers.parallel import columns
from calotype.schedulers.posterior import AncestralScheduler

__all__ = ["DDPMParallelScheduler", "DDPMParallelSchedulerOutput"]


class DDPMParallelScheduler(AncestralScheduler):
    """DDPM, and :meth:`batch_step_no_noise` for Picard iteration over a window of steps."""

    _is_ode_scheduler = False

    def batch_step_no_noise(
        self, model_output: torch.Tensor, timesteps: torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """The posterior means of a batch whose items are each at a training step of their own, (batch,)."""
        total = self.config.num_train_timesteps
        jump = total // (self.num_inference_steps or total)
        if model_output.shape[1] == 2 * sample.shape[1] and self.variance_type.startswith("learned"):
            model_output = model_output[:, : sample.shape[1]]
        steps = [self._coefficients(t, max(t - jump, -1)) for t in timesteps.tolist()]
        x, m, divisor, along, toward = columns([(*c.clean, c.along, c.toward) for c in steps], sample)
        return along * sample + toward * self._limits.apply((x * sample + m * model_output) / divisor)
