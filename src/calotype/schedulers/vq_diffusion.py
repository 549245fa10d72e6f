"""Mask-and-replace diffusion over the classes of a vector quantiser (VQ-Diffusion: Gu et al., arXiv:2111.14822)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.schedulers.checks import step_count
from calotype.schedulers.gumbel import uniform
from calotype.schedulers.options import Device
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SchedulerMixin


@dataclass
class VQDiffusionSchedulerOutput(BaseOutput):
    """``prev_sample``: the class of each latent pixel, (batch, pixels)."""

    prev_sample: torch.Tensor


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

    def _logs(self, a: np.ndarray, c: np.ndarray) -> tuple[torch.Tensor, ...]:
        b = (1 - a - c) / (self.num_embed - 1)
        if b.min() < -1e-9:
            raise InputError(
                "alpha_cum_… and gamma_cum_… leave less than nothing for the other classes: their sum, and that of "
                "each step's own share, must not pass 1."
            )
        b = b.clip(min=0)
        return tuple(torch.from_numpy(np.log(x).astype(np.float32)) for x in (a, b, c))

    def _begin_initial(self) -> None:
        self._begin(self.config.num_train_timesteps, None, None)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps, the last of the trained ones, without gaps."""
        self._begin(
            step_count(num_inference_steps, self.config.num_train_timesteps), device, num_inference_steps
        )

    def _begin(self, steps: int, device: Device, count: int | None) -> None:
        t = np.arange(steps)[::-1].copy()
        self._start(Plan(torch.from_numpy(t).to(device), count=count, t=tuple(t.tolist())))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> VQDiffusionSchedulerOutput | tuple[torch.Tensor]:
        """The classes one step on, drawn from p(x_{t−1} | x_t); ``model_output`` is log p(x0), (batch, K, pixels)."""
        t = int(self._run.plan.value(timestep))
        log_p = model_output if t == 0 else self.q_posterior(model_output, sample, t)
        u = uniform(log_p, generator)
        prev_sample = (log_p - torch.log(-torch.log(u + 1e-30) + 1e-30)).argmax(dim=1)
        return VQDiffusionSchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    def q_posterior(self, log_p_x_0: torch.Tensor, x_t: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """log Σ_{x0} q(x_t | x_{t−1})·q(x_{t−1} | x0)·p(x0)/q(x_t | x0), (batch, K + 1, pixels): equations 5 and 11."""
        onehot = torch.nn.functional.one_hot(x_t, self.num_embed).movedim(-1, 1)
        log_onehot = onehot.float().clamp(min=1e-30).log()
        known: dict[str, Any] = {"t": t, "x_t": x_t, "log_onehot_x_t": log_onehot}
        ratio = log_p_x_0 - self.log_Q_t_transitioning_to_known_class(**known, cumulative=True)
        total = ratio.logsumexp(dim=1, keepdim=True)
        earlier = self.apply_cumulative_transitions(ratio - total, t - 1)
        return earlier + self.log_Q_t_transitioning_to_known_class(**known, cumulative=False) + total

    def log_Q_t_transitioning_to_known_class(
        self, *, t: int | torch.Tensor, x_t: torch.Tensor, log_onehot_x_t: torch.Tensor, cumulative: bool
    ) -> torch.Tensor:
        """log q(x_t | x_{t−1}), or log q(x_t | x0) if ``cumulative``, for every class that there may have been before.

        (batch, K + 1, pixels), of which the last is the mask, that a clean x0 cannot be: (batch, K, pixels).
        """
        a, b, c = self._at(t, log_onehot_x_t, cumulative)
        stays = torch.logaddexp(log_onehot_x_t[:, :-1] + a, b)
        rows = torch.where((x_t == self.mask_class)[:, None], c, stays)
        return rows if cumulative else torch.cat([rows, log_onehot_x_t[:, -1:]], dim=1)

    def apply_cumulative_transitions(self, q: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """log probabilities of the classes at step ``t``, (batch, K + 1, pixels), from normalised ones of x0."""
        a, b, c = self._at(t, q, True)
        return torch.cat([torch.logaddexp(q + a, b), c.expand_as(q[:, :1])], dim=1)

    def _at(self, t: int | torch.Tensor, like: torch.Tensor, cumulative: bool) -> list[torch.Tensor]:
        kind = "log_cumprod" if cumulative else "log"
        return [getattr(self, f"{kind}_{x}t")[t].to(like.device) for x in "abc"]
