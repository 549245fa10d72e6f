"""iPNDM: a linear multistep method of order 4 whose order rises by one a step (Zhang & Chen, arXiv:2204.13902)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calotype.schedulers.affine import affine
from calotype.schedulers.checks import step_count
from calotype.schedulers.indexed import IndexedScheduler
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.pndm import ADAMS_BASHFORTH
from calotype.schedulers.run import Plan
from calotype.schedulers.transfer import Level


class IPNDMScheduler(IndexedScheduler):
    """ε̄ = Adams-Bashforth of the last ε̂ = σ·x + α·F, and the transfer along it, over σ = sin²(π·u/2), u from 1 to 0."""

    init_noise_sigma: float = 1.0
    pndm_order = 4

    def __init__(
        self, num_train_timesteps: int = 1000, trained_betas: np.ndarray | Sequence[float] | None = None
    ) -> None:
        pass

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps; ``trained_betas`` has their σ and the last one's."""
        steps = step_count(num_inference_steps)
        if self.config.trained_betas is not None:
            sigma = torch.tensor(self.config.trained_betas, dtype=torch.float32)
        else:
            u = torch.cat([torch.linspace(1, 0, steps + 1)[:-1], torch.zeros(1)])
            sigma = torch.sin(u * torch.pi / 2) ** 2
        alpha = (1.0 - sigma**2) ** 0.5
        timesteps = (torch.atan2(sigma, alpha) / torch.pi * 2)[:-1]
        levels = tuple(Level(*pair) for pair in zip(alpha.tolist(), sigma.tolist(), strict=True))
        self._start(Plan(timesteps.to(device), sigma, steps, tuple(timesteps.tolist()), levels=levels))

    @property
    def betas(self) -> torch.Tensor:
        """σ of the run's levels, the final one included."""
        return self._run.plan.sigmas  # type: ignore[return-value]

    @property
    def alphas(self) -> torch.Tensor:
        """α of the run's levels."""
        return (1.0 - self.betas**2) ** 0.5

    @property
    def ets(self) -> list[torch.Tensor]:
        """The ε̂ that the run remembers, oldest first."""
        return list(reversed(self._run.history))

    def scale_model_input(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The network's input: the sample itself."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on."""
        run, i = self._locate(timestep)
        s, to = run.plan.levels[i : i + 2]
        run.history = (affine((s.sigma, sample), (s.alpha, model_output)), *run.history[:3])
        slope = affine(*zip(ADAMS_BASHFORTH[len(run.history) - 1], run.history, strict=True))
        clean = affine((1.0, sample), (-s.sigma, slope)).div_(max(s.alpha, 1e-8))
        prev_sample = affine((to.alpha, clean), (to.sigma, slope))
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)
