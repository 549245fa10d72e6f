"""Consistency models: multistep consistency sampling (Song et al., arXiv:2303.01469, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import exactly_one, step_count
from calotype.schedulers.coordinates import EDM
from calotype.schedulers.outputs import SchedulerOutput as CMStochasticIterativeSchedulerOutput
from calotype.schedulers.sigmas import SigmaScheduler


class CMStochasticIterativeScheduler(SigmaScheduler):
    """f = c_skip·x + c_out·F, x' = f + √(σ'² − σ_min²)·z, along levels by Karras et al. (arXiv:2206.00364)."""

    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = True,
    ) -> None:
        self.init_noise_sigma = sigma_max

    @cached_property
    def _coordinates(self) -> EDM:  # type: ignore[override]
        return EDM(self.config.sigma_data)

    def _begin_initial(self) -> None:
        levels = self._karras(np.linspace(0, 1, self.config.num_train_timesteps))
        self._begin_levels(torch.from_numpy(self.sigma_to_t(levels)), torch.from_numpy(levels), None, None)

    def _karras(self, ramp: np.ndarray) -> np.ndarray:
        """σ at the given shares of the way from ``sigma_max`` to ``sigma_min``."""
        low, high = (x ** (1 / self.config.rho) for x in (self.config.sigma_min, self.config.sigma_max))
        return (high + ramp * (low - high)) ** self.config.rho

    def sigma_to_t(self, sigmas: Any) -> Any:
        """What the network is told of a level: 250·ln σ."""
        return 250.0 * np.log(np.asarray(sigmas, dtype=np.float64) + 1e-44)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a run of so many steps, or over the descending training steps ``timesteps``."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        total = self.config.num_train_timesteps
        if timesteps is not None:
            chosen = np.asarray(timesteps, dtype=np.int64)
            if len(chosen) == 0 or chosen[0] >= total or np.any(np.diff(chosen) >= 0):
                raise InputError(f"timesteps must descend from below {total}; got {list(timesteps)}.")
        else:
            steps = step_count(num_inference_steps, total)
            chosen = np.arange(steps)[::-1] * (total // steps)
        levels = self._karras(chosen[::-1] / (total - 1))
        t = torch.from_numpy(self.sigma_to_t(levels))
        sigmas = torch.from_numpy(np.append(levels, self.config.sigma_min).astype(np.float32))
        self._begin_levels(t, sigmas, device, len(chosen))

    def get_scalings(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out of Karras et al., arXiv:2206.00364, table 1."""
        data = self.config.sigma_data
        spread = sigma**2 + data**2
        return data**2 / spread, sigma * data / spread**0.5

    def get_scalings_for_boundary_condition(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out that are 1 and 0 at σ_min (arXiv:2303.01469, appendix C)."""
        data, above = self.config.sigma_data, sigma - self.config.sigma_min
        return data**2 / (above**2 + data**2), above * data / (sigma**2 + data**2) ** 0.5

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> CMStochasticIterativeSchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on; draws noise at every step of a run of more than one."""
        self._refuse_index(timestep)
        self._running()
        run, i = self._locate(timestep)
        self._warn_unscaled(run)
        config, kappa = self.config, run.plan.kappa
        skip, out = self.get_scalings_for_boundary_condition(kappa[i])
        clean = affine((out, model_output), (skip, sample))
        if config.clip_denoised:
            clean = clean.clamp(-1, 1)
        prev_sample = clean
        if len(run.plan.t) > 1:
            z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            to = min(max(kappa[i + 1], config.sigma_min), config.sigma_max)
            prev_sample = affine((1.0, clean), (config.s_noise * math.sqrt(to**2 - config.sigma_min**2), z))
        run.index = i + 1
        return CMStochasticIterativeSchedulerOutput(prev_sample) if return_dict else (prev_sample,)
