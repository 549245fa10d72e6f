"""Schedulers over a table whose SNR is divided by a factor, as large latents need (CogVideoX: arXiv:2408.06072)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.schedulers.checks import one_of, step_count
from calotype.schedulers.grid import spaced
from calotype.schedulers.noise import NoiseTable, make_betas
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import Level


class ShiftedTableScheduler(TableScheduler):
    """Base of both CogVideoX schedulers: the same configuration and schedule; the table is float64.

    ``clip_sample`` has no effect: it is in the configurations, but what these models predict is not a picture.
    """

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.0120,
        beta_schedule: str = "scaled_linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 3.0,
    ) -> None:
        self._check()
        one_of("beta_schedule", beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        self.betas = make_betas(beta_schedule, beta_start, beta_end, num_train_timesteps, trained_betas)
        if trained_betas is None and beta_schedule == "scaled_linear":
            self.betas = (
                torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
            )
        self.alphas = 1.0 - self.betas
        bar = torch.cumprod(self.alphas, dim=0)
        bar = bar / (snr_shift_scale + (1 - snr_shift_scale) * bar)
        if rescale_betas_zero_snr:
            signal = bar.sqrt()
            bar = ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))).square()
        self._table = NoiseTable(bar)
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else bar[0]

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps."""
        config, total = self.config, self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        self._begin_table(
            spaced(config.timestep_spacing, steps, total, config.steps_offset).round(), device, steps
        )

    def _ends(self, t: int) -> tuple[Level, Level]:
        """The levels of a step from ``t``: there, and T//N training steps on."""
        jump = self.config.num_train_timesteps // (self._running().plan.count or 1)
        return self._level(t), self._level(t - jump, float(self.final_alpha_cumprod))
