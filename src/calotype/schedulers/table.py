"""Schedulers over the noise table of a discrete-time model, ᾱ_t of its training steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calotype.core.config import ConfigMixin, init_parameters
from calotype.core.errors import InputError
from calotype.schedulers import noise
from calotype.schedulers.grid import spaced
from calotype.schedulers.levels import Level, Limits, Lines, level_of_alpha_bar, lines
from calotype.schedulers.noise import NoiseTable
from calotype.schedulers.options import Device, step_count
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY, Unscaled
from calotype.schedulers.stepping import once


class Tabled(ConfigMixin):
    """A scheduler over a table ᾱ of training steps, which is public and may be replaced (``alphas_cumprod``)."""

    _compatibles: ClassVar[tuple[str, ...]] = SIGNAL_NOISE_FAMILY
    _zero_snr_floor: ClassVar[bool] = False
    """Whether zero terminal SNR leaves ᾱ_T at 2⁻²⁴, for methods that need κ."""
    betas: Tensor
    alphas: Tensor
    _table: NoiseTable

    @cached_property
    def _limits(self) -> Limits:
        """What the configuration wants done to x̂0."""
        return Limits.of(self.config, init_parameters(type(self)))

    def _prepare(self) -> None:
        """Make the noise table; raise ``InputError`` for a flow's prediction without a flow's levels."""
        config = self.config
        if config.get("prediction_type") == "flow_prediction" and not config.get("use_flow_sigmas"):
            raise InputError(
                "prediction_type='flow_prediction' has a meaning only with use_flow_sigmas=True."
            )
        ends = config.get("beta_start", 0.0), config.get("beta_end", 0.0)
        betas = noise.make_betas(
            config.beta_schedule, *ends, config.num_train_timesteps, config.get("trained_betas")
        )
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        self.betas = noise.zero_terminal_snr(betas) if zero_snr else betas
        self.alphas = 1.0 - self.betas
        bar = torch.cumprod(self.alphas, dim=0)
        if zero_snr and self._zero_snr_floor:
            bar[-1] = 2.0**-24
        self._use(bar)

    def _use(self, bar: Tensor) -> None:
        """Make ᾱ the table; ``final_alpha_cumprod`` is where runs over the training steps end."""
        self._table = NoiseTable(bar)
        self.final_alpha_cumprod = torch.tensor(1.0) if self.config.get("set_alpha_to_one", True) else bar[0]

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_t of every training step."""
        return self._table.alphas_cumprod

    @alphas_cumprod.setter
    def alphas_cumprod(self, value: Tensor) -> None:
        self._table = NoiseTable(value)


class TableScheduler(Tabled, Unscaled):
    """Base of the methods whose levels are those of the training steps themselves (DDPM, DDIM, PNDM, …)."""

    init_noise_sigma: float = 1.0

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α_t·x0 + σ_t·ε at the training steps ``timesteps`` (integers, one an item)."""
        alpha, sigma = self._table.alpha_sigma(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α_t·ε − σ_t·x0, the target of v-prediction."""
        alpha, sigma = self._table.alpha_sigma(sample, timesteps)
        return alpha * noise - sigma * sample

    def _level(self, t: int) -> Level:
        """The level of a training step; before the first step it is the final one."""
        levels = self._table.levels
        if t >= len(levels):
            raise InputError(
                f"timestep {t} is past the last of the {len(levels)} training steps, {len(levels) - 1}."
            )
        return levels[t] if t >= 0 else level_of_alpha_bar(float(self.final_alpha_cumprod))

    @once
    def _lines(self, t: int) -> Lines:
        """What the network says at a training step."""
        return lines(self.config.prediction_type, *self._level(t))

    @property
    def _jump(self) -> int:
        """T//N: how many training steps DDIM's step goes down, whatever the spacing."""
        return self.config.num_train_timesteps // (self._run.plan.count or 1)

    def previous_timestep(self, timestep: Any) -> int:
        """The step that follows ``timestep`` in the run, -1 after the last; one less if no run was begun."""
        plan = self._run.plan
        t = int(plan.value(timestep))
        if plan.count is None:
            return t - 1
        index = plan.position(timestep)
        if index is None:
            index = plan.index(t)
        return int(plan.t[index + 1]) if index + 1 < len(plan.t) else -1

    def _begin_initial(self) -> None:
        self._begin(np.arange(self.config.num_train_timesteps)[::-1])

    def _spaced(self, steps: int) -> np.ndarray:
        """So many training steps, as the configuration spaces them."""
        config = self.config
        t = spaced(config.timestep_spacing, steps, config.num_train_timesteps, config.steps_offset)
        return t.round().astype(np.int64)

    def _begin_spaced(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps, as the configuration spaces them."""
        steps = step_count(num_inference_steps, self.config.num_train_timesteps)
        self._begin(self._spaced(steps), device, steps)


def columns(rows: Sequence[Sequence[float]], like: Tensor) -> list[Tensor]:
    """Each coefficient of the rows of a batch's items, which are at different steps, as a tensor shaped to multiply
    ``like``, on its device, in its dtype."""
    table = torch.tensor(rows, dtype=torch.float64).to(like.device, like.dtype)
    return [column.reshape(-1, *(1,) * (like.dim() - 1)) for column in table.unbind(1)]
