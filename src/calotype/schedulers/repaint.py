"""RePaint: inpainting with a model trained for nothing of the kind (Lugmayr et al., arXiv:2201.09865)."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine, combined, evaluate
from calotype.schedulers.checks import step_count
from calotype.schedulers.options import Device, choice, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.prediction import clean
from calotype.schedulers.run import Run
from calotype.schedulers.stepping import stepping
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import fresh_noise, transfer


class RePaintScheduler(TableScheduler):
    """The transfer of family A where the picture is unknown, the known picture noised where it is.

    ``timesteps`` fall and jump back up by turns (algorithm 1 and figure 9): the caller undoes steps where they rise.
    """

    _compatibles = ()

    def _prepare(self) -> None:
        self._make_table()
        self.eta = self.config.eta

    __init__ = constructor(
        "num_train_timesteps beta_start beta_end beta_schedule eta trained_betas clip_sample",
        setup=_prepare,
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
        self._begin_table(np.array(walk) * (total // steps), device, steps)

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(
        self,
        run: Run,
        t: int,
        output: Tensor,
        sample: Tensor,
        original_image: Tensor,
        mask: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, Tensor]:
        """The sample one step on; ``mask`` is 1 where ``original_image`` is kept. Draws noise at every step."""
        memo = run.plan.memo
        if (t, self.eta) not in memo:
            s, to = self._level(t), self._level(t - self._jump)
            fresh = fresh_noise(s, to, self.eta) if t > 0 else 0.0
            memo[t, self.eta] = clean("epsilon", *s), to, transfer(to, fresh), fresh
        to_clean, to, (toward, direction), fresh = memo[t, self.eta]
        x0 = to_clean.of(sample, output, self._limits)
        z = randn_tensor(output.shape, generator, output.device, output.dtype)
        unknown = affine((toward, x0), (direction, output), (fresh, z))
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
