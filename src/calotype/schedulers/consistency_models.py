"""Consistency models: jump to x̂0, then noise it to the next level; in EDM's levels, and in TrigFlow's angles.

Song et al., arXiv:2303.01469, algorithm 1; Lu & Song, arXiv:2410.11081.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine
from calotype.schedulers.checks import exactly_one, step_count
from calotype.schedulers.coordinates import edm
from calotype.schedulers.options import Device, Numbers, choice, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.sigmas import IndexedScheduler, SigmaScheduler
from calotype.schedulers.stepping import stepping


class CMStochasticIterativeScheduler(SigmaScheduler):
    """f = c_skip·x + c_out·F, x' = f + √(σ'² − σ_min²)·z, along levels by Karras et al. (arXiv:2206.00364)."""

    def _prepare(self) -> None:
        self.init_noise_sigma = self.config.sigma_max
        self._coordinates = edm(self.config.sigma_data)

    __init__ = constructor(
        "num_train_timesteps sigma_min sigma_max sigma_data s_noise rho clip_denoised",
        setup=_prepare,
        num_train_timesteps=40,
        sigma_min=0.002,
        sigma_max=80.0,
    )

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
        self, num_inference_steps: int | None = None, device: Device = None, timesteps: Numbers = None
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

    @stepping(begun=True, fractional=True)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Value]:
        """The sample one step on; draws noise at every step of a run of more than one."""
        self._warn_unscaled()
        config, kappa = self.config, run.plan.kappa
        skip, out = self.get_scalings_for_boundary_condition(kappa[i])
        clean = affine((out, output), (skip, sample), bound=1.0 if config.clip_denoised else None)
        if len(run.plan.t) == 1:
            return (clean,)
        z = randn_tensor(output.shape, generator, output.device, output.dtype)
        to = min(max(kappa[i + 1], config.sigma_min), config.sigma_max)
        return (affine((1.0, clean), (config.s_noise * math.sqrt(to**2 - config.sigma_min**2), z)),)


class SCMScheduler(IndexedScheduler):
    """x̂0 = cos t·x − sin t·F, x' = cos t'·x̂0 + sin t'·σ_d·z. ``timesteps`` are angles, the final 0 included."""

    init_noise_sigma: float = 1.0

    __init__ = constructor(
        "num_train_timesteps prediction_type sigma_data",
        setup=lambda self: None,
        prediction_type=choice("trigflow"),
    )

    def _begin_initial(self) -> None:
        steps = np.arange(self.config.num_train_timesteps)[::-1].copy()
        self._start(Plan(torch.from_numpy(steps), t=tuple(steps.tolist())))

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[float] | Tensor | None = None,
        device: Device = None,
        max_timesteps: float | None = 1.57080,
        intermediate_timesteps: float | None = 1.3,
    ) -> None:
        """Begin a run of so many steps: over the given angles, which are one more, or from ``max_timesteps`` to 0.

        Two steps go over ``intermediate_timesteps`` where it is given, others are even.
        """
        steps = step_count(num_inference_steps, self.config.num_train_timesteps)
        if timesteps is not None:
            angles = torch.as_tensor(timesteps, dtype=torch.float32).cpu()
            if len(angles) != steps + 1:
                raise InputError(
                    f"timesteps has {len(angles)} entries for {steps} steps: give one more than steps."
                )
        elif max_timesteps is None:
            raise InputError("Give timesteps, or max_timesteps to begin at.")
        elif intermediate_timesteps and steps == 2:
            angles = torch.tensor([max_timesteps, intermediate_timesteps, 0.0])
        else:
            angles = torch.linspace(max_timesteps, 0, steps + 1)
        self._start(Plan(angles.to(device), count=steps, t=tuple(angles.tolist())))

    @stepping(PredictionSchedulerOutput, begun=True)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Value, Value]:
        """The sample one step on; draws noise at every step, the last included."""
        if i + 1 == len(run.plan.t):
            raise InputError(
                "The last of the timesteps, 0, is where the run ends: step from those before it."
            )
        s, to = run.plan.t[i : i + 2]
        clean = affine((math.cos(s), sample), (-math.sin(s), output))
        z = randn_tensor(output.shape, generator, output.device)
        return affine((math.cos(to), clean), (math.sin(to) * self.config.sigma_data, z)), clean
