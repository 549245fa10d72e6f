"""Euler's method on a rectified flow (Liu et al., arXiv:2209.03003; Esser et al., arXiv:2403.03206)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.flow import FlowScheduler
from calotype.schedulers.outputs import SchedulerOutput as FlowMatchEulerDiscreteSchedulerOutput


class FlowMatchEulerDiscreteScheduler(FlowScheduler):
    """x' = x + (σ' − σ)·u; with ``stochastic_sampling`` instead x̂0 noised anew, (1 − σ')·x̂0 + σ'·z."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ) -> None:
        self._prepare()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these levels or timesteps. ``mu`` shifts them (dynamic shifting)."""
        self._begin_schedule(num_inference_steps, device, sigmas, mu, timesteps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on; the ``s_…`` have no effect on this method.

        ``per_token_timesteps`` (batch, tokens) gives tokens levels of their own: each goes on to the schedule's next
        level below, and ``model_output`` is −u.
        """
        self._refuse_index(timestep)
        run, i = self._locate(timestep)
        sigma, following = run.plan.kappa[i : i + 2]
        sample = sample.to(torch.float32)
        if per_token_timesteps is not None:
            own, down = self._token_levels(per_token_timesteps)
            if self.config.stochastic_sampling:
                clean = sample - own * model_output
                z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
                prev_sample = (1 - down) * clean + down * z
            else:
                prev_sample = sample + (own - down) * model_output
        elif self.config.stochastic_sampling:
            clean = affine((1.0, sample), (-sigma, model_output))
            z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            prev_sample = affine((1 - following, clean), (following, z))
        else:
            prev_sample = affine((1.0, sample), (following - sigma, model_output))
        # levels of their own keep their precision
        prev_sample = prev_sample if per_token_timesteps is not None else prev_sample.to(model_output.dtype)
        run.index = i + 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    def _token_levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's level and the schedule's next below it, both (batch, tokens, 1)."""
        own = timesteps / self.config.num_train_timesteps
        levels = self.sigmas.to(own.device)[:, None, None]
        down = ((levels < own - 1e-6) * levels).amax(0)
        return own[..., None], down[..., None]
