"""Diffusion over classes: VQ-Diffusion (Gu et al., arXiv:2111.14822) replaces and masks them; masked image modelling
(MaskGIT: Chang et al., arXiv:2202.04200; aMUSEd: Patil et al., arXiv:2401.01808) draws all and masks the least certain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers.options import Device, one_of, step_count
from calotype.schedulers.scheduler import SchedulerMixin, of_run
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, stepping


def uniform(like: Tensor, generator: torch.Generator | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1) shaped as ``like``, drawn where the generator lives."""
    where = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=where, dtype=dtype).to(like.device)


class VQDiffusionScheduler(SchedulerMixin):
    """A step keeps a class with probability α, replaces it by any of the K others with β each, masks it with γ.

    ``log_at``, ``log_bt``, ``log_ct`` are their logarithms, ``log_cumprod_…`` those over all steps up to one; the
    last entry of the cumulative ones is that of no step, so that index −1 is before the first.
    """

    def __init__(
        self,
        num_vec_classes: int,
        num_train_timesteps: int = 100,
        alpha_cum_start: float = 0.99999,
        alpha_cum_end: float = 0.000009,
        gamma_cum_start: float = 0.000009,
        gamma_cum_end: float = 0.99999,
    ) -> None:
        if num_vec_classes < 2:
            raise InputError(
                f"num_vec_classes={num_vec_classes} must count the mask and at least one class more."
            )
        self.num_embed = num_vec_classes
        self.mask_class = num_vec_classes - 1
        kept = np.concatenate([[1.0], np.linspace(alpha_cum_start, alpha_cum_end, num_train_timesteps)])
        open_ = 1 - np.concatenate([[0.0], np.linspace(gamma_cum_start, gamma_cum_end, num_train_timesteps)])
        at, ct = kept[1:] / kept[:-1], 1 - open_[1:] / open_[:-1]
        att, ctt = np.roll(kept, -1), 1 - np.roll(open_, -1)
        with np.errstate(divide="ignore"):
            self.log_at, self.log_bt, self.log_ct = self._logs(at, ct)
            self.log_cumprod_at, self.log_cumprod_bt, self.log_cumprod_ct = self._logs(att, ctt)

    def _logs(self, a: np.ndarray, c: np.ndarray) -> tuple[Tensor, ...]:
        b = (1 - a - c) / (self.num_embed - 1)
        if b.min() < -1e-9:
            raise InputError(
                "alpha_cum_… and gamma_cum_… leave less than nothing for the other classes: their sum, and that of "
                "each step's own share, must not pass 1."
            )
        b = b.clip(min=0)
        return tuple(torch.from_numpy(np.log(x).astype(np.float32)) for x in (a, b, c))

    def _begin_initial(self) -> None:
        self._begin(np.arange(self.config.num_train_timesteps)[::-1])

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps, the last of the trained ones, without gaps."""
        steps = step_count(num_inference_steps, self.config.num_train_timesteps)
        self._begin(np.arange(steps)[::-1], device, steps)

    @stepping(indexed=False)
    def step(self, at: Step, generator: torch.Generator | None = None) -> Values:
        """The classes one step on, (batch, pixels), drawn from p(x_{t−1} | x_t); ``model_output`` is log p(x0),
        (batch, K, pixels)."""
        log_p = at.output if at.t == 0 else self.q_posterior(at.output, at.sample, at.t)
        u = uniform(log_p, generator)
        return ((log_p - torch.log(-torch.log(u + 1e-30) + 1e-30)).argmax(dim=1),)

    def q_posterior(self, log_p_x_0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """log Σ_{x0} q(x_t | x_{t−1})·q(x_{t−1} | x0)·p(x0)/q(x_t | x0), (batch, K + 1, pixels): equations 5 and 11."""
        onehot = torch.nn.functional.one_hot(x_t, self.num_embed).movedim(-1, 1)
        log_onehot = onehot.float().clamp(min=1e-30).log()
        known: dict[str, Any] = {"t": t, "x_t": x_t, "log_onehot_x_t": log_onehot}
        ratio = log_p_x_0 - self.log_Q_t_transitioning_to_known_class(**known, cumulative=True)
        total = ratio.logsumexp(dim=1, keepdim=True)
        earlier = self.apply_cumulative_transitions(ratio - total, t - 1)
        return earlier + self.log_Q_t_transitioning_to_known_class(**known, cumulative=False) + total

    def log_Q_t_transitioning_to_known_class(
        self, *, t: int | Tensor, x_t: Tensor, log_onehot_x_t: Tensor, cumulative: bool
    ) -> Tensor:
        """log q(x_t | x_{t−1}), or log q(x_t | x0) if ``cumulative``, for every class that there may have been before.

        (batch, K + 1, pixels), of which the last is the mask, that a clean x0 cannot be: (batch, K, pixels).
        """
        a, b, c = self._at(t, log_onehot_x_t, cumulative)
        stays = torch.logaddexp(log_onehot_x_t[:, :-1] + a, b)
        rows = torch.where((x_t == self.mask_class)[:, None], c, stays)
        return rows if cumulative else torch.cat([rows, log_onehot_x_t[:, -1:]], dim=1)

    def apply_cumulative_transitions(self, q: Tensor, t: int | Tensor) -> Tensor:
        """log probabilities of the classes at step ``t``, (batch, K + 1, pixels), from normalised ones of x0."""
        a, b, c = self._at(t, q, True)
        return torch.cat([torch.logaddexp(q + a, b), c.expand_as(q[:, :1])], dim=1)

    def _at(self, t: int | Tensor, like: Tensor, cumulative: bool) -> list[Tensor]:
        kind = "log_cumprod" if cumulative else "log"
        return [getattr(self, f"{kind}_{x}t")[t].to(like.device) for x in "abc"]


class AmusedScheduler(SchedulerMixin):
    """After step i of N the share cos(π/2·(i + 1)/N) of the tokens is masked, or 1 − (i + 1)/N."""

    def __init__(self, mask_token_id: int, masking_schedule: str = "cosine") -> None:
        one_of("masking_schedule", masking_schedule, ("cosine", "linear"))

    _begin_initial = SchedulerMixin._begin_nothing
    temperatures = of_run("plan.sigmas", "The temperature of each step; None before ``set_timesteps``.")

    def set_timesteps(
        self, num_inference_steps: int, temperature: float | Sequence[float] = (2, 0), device: Device = None
    ) -> None:
        """Begin a run of so many steps; ``temperature`` (first and last, or the first) blurs which are the certain."""
        steps = step_count(num_inference_steps)
        first, last = temperature if isinstance(temperature, Sequence) else (temperature, 0.01)
        self._begin(np.arange(steps)[::-1], device, steps, torch.linspace(first, last, steps))

    def _step(self, timestep: int | Tensor) -> tuple[int, Tensor]:
        """The index of a step and the share of the tokens that is masked after it."""
        plan = self._running().plan
        t = int(plan.value(timestep))
        if not 0 <= t < len(plan.t):
            raise InputError(f"timestep {t} is not one of the {len(plan.t)} of the run.")
        i = len(plan.t) - 1 - t
        share = torch.tensor(i + 1) / len(plan.t)  # float32: the count of tokens hangs on its rounding
        cosine = self.config.masking_schedule == "cosine"
        return i, torch.cos(share * math.pi / 2) if cosine else 1 - share

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(
        self, at: Step, starting_mask_ratio: float = 1.0, generator: torch.Generator | None = None
    ) -> Values:
        """The tokens one step on, with some masked again, and all tokens that were drawn.

        ``sample`` is (batch, tokens) with ``model_output`` (batch, tokens, classes), or (batch, height, width) with
        (batch, classes, height, width); ``starting_mask_ratio`` is the share that was masked at first.
        """
        (i, share), sample, output = self._step(at.t), at.sample, at.output
        shape, mask_id = sample.shape, self.config.mask_token_id
        if sample.dim() == 3:
            sample, output = sample.flatten(1), output.flatten(2).transpose(1, 2)
        unknown = sample == mask_id
        p = output.softmax(dim=-1)
        drawn = self._draw(p, generator)
        tokens = prev_sample = torch.where(unknown, drawn, sample)
        if i + 1 < len(at.plan.t):
            wanted = (sample.shape[1] * (starting_mask_ratio * share)).floor().to(sample.device)
            count = torch.minimum(unknown.sum(dim=-1, keepdim=True) - 1, wanted).clamp(min=1)
            certainty = p.gather(-1, tokens[:, :, None])[:, :, 0]
            certainty = torch.where(unknown, certainty, torch.finfo(certainty.dtype).max)
            u = uniform(certainty, generator, certainty.dtype)
            noise = -torch.log((-torch.log(u.clamp(min=1e-20))).clamp(min=1e-20)).float()
            score = certainty.log() + float(self.temperatures[i]) * noise
            least = score.sort(dim=-1).values.gather(1, count.long())
            prev_sample = torch.where(score < least, mask_id, tokens)
        return prev_sample.reshape(shape), tokens.reshape(shape)

    @staticmethod
    def _draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
        """One class of each token, drawn where the generator lives."""
        where = p.to(p.device if generator is None else generator.device)
        where = where.float() if where.device.type == "cpu" else where
        drawn = torch.multinomial(where.reshape(-1, p.shape[-1]), 1, generator=generator)
        return drawn.reshape(p.shape[:-1]).to(p.device)

    def add_noise(self, sample: Tensor, timesteps: int, generator: torch.Generator | None = None) -> Tensor:
        """The tokens with as many masked, at random, as there are after the step at ``timesteps``."""
        share = self._step(timesteps)[1].to(sample.device)
        drawn = uniform(sample, generator)
        return torch.where(drawn < share, self.config.mask_token_id, sample)
