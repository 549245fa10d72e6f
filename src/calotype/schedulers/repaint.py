"""RePaint: inpainting with a model trained for nothing of the kind (Lugmayr et al., arXiv:2201.09865)."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine, combined, evaluate
from calotype.schedulers.levels import transfer
from calotype.schedulers.options import Device, choice, constructor, step_count
from calotype.schedulers.prediction import clean
from calotype.schedulers.run import Step
from calotype.schedulers.stepping import PredictionSchedulerOutput, Values, stepping
from calotype.schedulers.table import TableScheduler


class RePaintScheduler(TableScheduler):
    """The transfer of family A where the picture is unknown, the known picture noised where it is.

    ``timesteps`` fall and jump back up by turns (algorithm 1 and figure 9): the caller undoes steps where they rise.
    """

    _compatibles = ()

    def _prepare_noise(self) -> None:
        self._prepare()
        self.eta = self.config.eta

    __init__ = constructor(
        "num_train_timesteps beta_start beta_end beta_schedule eta trained_betas clip_sample",
        setup=_prepare_noise,
        beta_schedule=choice("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    )

    def set_timesteps(
        self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10, device: Device = None
    ) -> None:
        """Begin a run of so many steps; each stretch of ``jump_length`` is walked ``jump_n_sample`` times."""
        total = self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        if jump_length < 1 or jump_n_sample < 1:
            raise InputError(
                f"jump_length={jump_length} and jump_n_sample={jump_n_sample} must be at least 1."
            )
        left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_n_sample - 1)
        walk, t = [], steps
        while t > 0:
            t -= 1
            walk.append(t)
            if left.get(t, 0) > 0:
                left[t] -= 1
                walk.extend(range(t + 1, t + jump_length + 1))
                t += jump_length
        self._begin(np.array(walk) * (total // steps), device, steps)

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(self, at: Step, original_image: Tensor, mask: Tensor, generator: Generators = None) -> Values:
        """The sample one step on; ``mask`` is 1 where ``original_image`` is kept. Draws noise at every step."""
        t = at.t
        s, to = self._level(t), self._level(t - self._jump)
        toward, direction, fresh = transfer(s, to, self.eta if t > 0 else 0.0)
        x0, z = clean("epsilon", *s).of(at.sample, at.output, self._limits), at.noise(generator)
        unknown = affine((toward, x0), (direction, at.output), (fresh, z))
        known = affine((to.alpha, original_image), (to.sigma, z))
        unknown, known, x0 = evaluate(unknown, known, x0)
        return mask * known + (1.0 - mask) * unknown, x0

    def undo_step(self, sample: Tensor, timestep: int, generator: Generators = None) -> Tensor:
        """The sample one step back up, by the training steps from ``timestep`` on, each with noise of its own."""
        t = int(self._running().plan.value(timestep))
        for beta in self.betas[t : t + self._jump].tolist():
            z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            sample = combined((math.sqrt(1 - beta), sample), (math.sqrt(beta), z))
        return sample
