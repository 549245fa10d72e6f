"""Masked image modelling: all tokens are drawn at once and the least certain masked again (MaskGIT: Chang et al.,
arXiv:2202.04200; aMUSEd: Patil et al., arXiv:2401.01808)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.schedulers.checks import one_of, step_count
from calotype.schedulers.gumbel import uniform
from calotype.schedulers.options import Device
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SchedulerMixin


@dataclass
class AmusedSchedulerOutput(BaseOutput):
    """``prev_sample``: the tokens with some masked again; ``pred_original_sample``: all tokens that were drawn."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class AmusedScheduler(SchedulerMixin):
    """After step i of N the share cos(π/2·(i + 1)/N) of the tokens is masked, or 1 − (i + 1)/N."""

    def __init__(self, mask_token_id: int, masking_schedule: str = "cosine") -> None:
        one_of("masking_schedule", masking_schedule, ("cosine", "linear"))

    def _begin_initial(self) -> None:
        self._start(Plan(None))

    def set_timesteps(
        self,
        num_inference_steps: int,
        temperature: float | Sequence[float] = (2, 0),
        device: Device = None,
    ) -> None:
        """Begin a run of so many steps; ``temperature`` (first and last, or the first) blurs which are the certain."""
        steps = step_count(num_inference_steps)
        first, last = temperature if isinstance(temperature, Sequence) else (temperature, 0.01)
        t = np.arange(steps)[::-1].copy()
        plan = Plan(torch.from_numpy(t).to(device), count=steps, t=tuple(t.tolist()))
        self._start(replace(plan, sigmas=torch.linspace(first, last, steps)))

    @property
    def temperatures(self) -> torch.Tensor | None:
        """The temperature of each step; None before ``set_timesteps``."""
        return self._run.plan.sigmas

    def _step(self, timestep: int | torch.Tensor) -> tuple[int, torch.Tensor]:
        """The index of a step and the share of the tokens that is masked after it."""
        plan = self._running().plan
        t = int(plan.value(timestep))
        if not 0 <= t < len(plan.t):
            raise InputError(f"timestep {t} is not one of the {len(plan.t)} of the run.")
        i = len(plan.t) - 1 - t
        share = torch.tensor(i + 1) / len(plan.t)  # float32: the count of tokens hangs on its rounding
        cosine = self.config.masking_schedule == "cosine"
        return i, torch.cos(share * math.pi / 2) if cosine else 1 - share

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        starting_mask_ratio: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> AmusedSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The tokens one step on.

        ``sample`` is (batch, tokens) with ``model_output`` (batch, tokens, classes), or (batch, height, width) with
        (batch, classes, height, width); ``starting_mask_ratio`` is the share that was masked at first.
        """
        i, share = self._step(timestep)
        shape, mask_id = sample.shape, self.config.mask_token_id
        if sample.dim() == 3:
            sample, model_output = sample.flatten(1), model_output.flatten(2).transpose(1, 2)
        unknown = sample == mask_id
        p = model_output.softmax(dim=-1)
        drawn = self._draw(p, generator)
        tokens = prev_sample = torch.where(unknown, drawn, sample)
        if i + 1 < len(self._run.plan.t):
            wanted = (sample.shape[1] * (starting_mask_ratio * share)).floor().to(sample.device)
            count = torch.minimum(unknown.sum(dim=-1, keepdim=True) - 1, wanted).clamp(min=1)
            certainty = p.gather(-1, tokens[:, :, None])[:, :, 0]
            certainty = torch.where(unknown, certainty, torch.finfo(certainty.dtype).max)
            u = uniform(certainty, generator, certainty.dtype)
            noise = -torch.log((-torch.log(u.clamp(min=1e-20))).clamp(min=1e-20)).float()
            score = certainty.log() + float(self.temperatures[i]) * noise  # type: ignore[index]
            least = score.sort(dim=-1).values.gather(1, count.long())
            prev_sample = torch.where(score < least, mask_id, tokens)
        prev_sample, tokens = prev_sample.reshape(shape), tokens.reshape(shape)
        return AmusedSchedulerOutput(prev_sample, tokens) if return_dict else (prev_sample, tokens)

    @staticmethod
    def _draw(p: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """One class of each token, drawn where the generator lives."""
        where = p.to(p.device if generator is None else generator.device)
        where = where.float() if where.device.type == "cpu" else where
        drawn = torch.multinomial(where.reshape(-1, p.shape[-1]), 1, generator=generator)
        return drawn.reshape(p.shape[:-1]).to(p.device)

    def add_noise(
        self, sample: torch.Tensor, timesteps: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The tokens with as many masked, at random, as there are after the step at ``timesteps``."""
        share = self._step(timesteps)[1].to(sample.device)
        drawn = uniform(sample, generator)
        return torch.where(drawn < share, self.config.mask_token_id, sample)
