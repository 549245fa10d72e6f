"""Simplified consistency models in TrigFlow, x_t = cos t·x0 + sin t·σ_d·z (Lu & Song, arXiv:2410.11081)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import one_of, step_count
from calotype.schedulers.indexed import IndexedScheduler
from calotype.schedulers.outputs import PredictionSchedulerOutput as SCMSchedulerOutput
from calotype.schedulers.run import Plan


class SCMScheduler(IndexedScheduler):
    """x̂0 = cos t·x − sin t·F, x' = cos t'·x̂0 + sin t'·σ_d·z. ``timesteps`` are angles, the final 0 included."""

    init_noise_sigma: float = 1.0

    def __init__(
        self, num_train_timesteps: int = 1000, prediction_type: str = "trigflow", sigma_data: float = 0.5
    ) -> None:
        one_of("prediction_type", prediction_type, ("trigflow",))

    def _begin_initial(self) -> None:
        steps = np.arange(self.config.num_train_timesteps)[::-1].copy()
        self._start(Plan(torch.from_numpy(steps), t=tuple(steps.tolist())))

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[float] | torch.Tensor | None = None,
        device: str | torch.device | None = None,
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

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SCMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on; draws noise at every step, the last included."""
        run = self._running()
        _, i = self._locate(timestep)
        if i + 1 == len(run.plan.t):
            raise InputError(
                "The last of the timesteps, 0, is where the run ends: step from those before it."
            )
        s, to = run.plan.t[i : i + 2]
        clean = affine((math.cos(s), sample), (-math.sin(s), model_output))
        z = randn_tensor(model_output.shape, generator, model_output.device)
        prev_sample = affine((math.cos(to), clean), (math.sin(to) * self.config.sigma_data, z))
        run.index = i + 1
        return SCMSchedulerOutput(prev_sample, clean) if return_dict else (prev_sample, clean)
