"""Latent consistency models: jump to x̂0, then noise it to the next level (Luo et al., arXiv:2310.04378)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.distilled import DistilledScheduler


@dataclass
class LCMSchedulerOutput(BaseOutput):
    """``prev_sample`` and the consistency function's value at this step, ``denoised``."""

    prev_sample: torch.Tensor
    denoised: torch.Tensor | None = None


class LCMScheduler(DistilledScheduler):
    """f = c_out·x̂0 + c_skip·x, x' = α'·f + σ'·z; the last step is f."""

    sigma_data = 0.5

    def get_scalings_for_boundary_condition_discrete(self, timestep: float) -> tuple[float, float]:
        """c_skip and c_out at a training step, 1 and 0 at the first (Song et al., arXiv:2303.01469, appendix C)."""
        scaled, data = timestep * self.config.timestep_scaling, self.sigma_data
        spread = scaled**2 + data**2
        return data**2 / spread, scaled / math.sqrt(spread)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> LCMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on; draws noise except at the last step."""
        self._running()
        run, i = self._locate(timestep)
        t = int(run.plan.t[i])
        s = self._level(t)
        skip, out = self.get_scalings_for_boundary_condition_discrete(t)
        x0 = self._limits.apply(prediction.clean(self.config.prediction_type, *s).of(sample, model_output))
        denoised = prev_sample = affine((out, x0), (skip, sample))
        if i + 1 < len(run.plan.t):
            alpha, sigma = self._level(int(run.plan.t[i + 1]))
            z = randn_tensor(model_output.shape, generator, model_output.device, denoised.dtype)
            prev_sample = affine((alpha, denoised), (sigma, z))
        run.index = i + 1
        return LCMSchedulerOutput(prev_sample, denoised) if return_dict else (prev_sample, denoised)
