"""unCLIP: the chain of DDPM with a cosine schedule (Ramesh et al., arXiv:2204.06125; Karlo, Kandinsky)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from calotype.core.random import Generators
from calotype.schedulers.affine import Value
from calotype.schedulers.checks import step_count
from calotype.schedulers.ddpm import PosteriorScheduler
from calotype.schedulers.options import Device, choice, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.run import Run
from calotype.schedulers.stepping import stepping


class UnCLIPScheduler(PosteriorScheduler):
    """As DDPM with a cosine schedule, but steps are even between both ends of the chain and the caller may say which
    step follows (Ramesh et al., arXiv:2204.06125; Karlo, Kandinsky)."""

    _compatibles = ()

    __init__ = constructor(
        "num_train_timesteps variance_type clip_sample clip_sample_range prediction_type beta_schedule",
        setup=PosteriorScheduler._prepare,
        variance_type=choice("fixed_small_log", "learned_range"),
        prediction_type=choice("epsilon", "sample"),
        beta_schedule=choice("squaredcos_cap_v2"),
    )

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps, the last trained and the first among them."""
        total = self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        spaced = np.arange(steps) * ((total - 1) / (steps - 1)) if steps > 1 else np.array([total - 1.0])
        self._begin_table(spaced.round()[::-1], device, steps)

    @stepping(PredictionSchedulerOutput, indexed=False)
    def step(
        self,
        run: Run,
        t: int,
        output: Tensor,
        sample: Tensor,
        prev_timestep: int | Tensor | Literal["next"] | None = None,
        generator: Generators = None,
    ) -> tuple[Value, Value]:
        """The sample at ``prev_timestep`` (default: the training step before); draws noise except at step 0.

        ``prev_timestep="next"`` is the timestep that follows in the run.
        """
        if prev_timestep == "next":
            prev_timestep = _following(run.plan.t, t)
        previous = t - 1 if prev_timestep is None else int(run.plan.value(prev_timestep))
        at = self._coefficients(t, previous, float(self.betas[t]) if previous == t - 1 else None)
        return self._drawn(output, at, sample, generator, t == 0)


def _following(timesteps: Sequence[float], t: int) -> int | None:
    """The timestep after ``t`` in a run; None after the last."""
    after = timesteps.index(t) + 1
    return int(timesteps[after]) if after < len(timesteps) else None
