"""DPM-Solver and DPM-Solver++, multistep, as ODE or SDE (Lu et al., arXiv:2206.00927 and 2211.01095)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.schedulers.checks import exactly_one, one_of, refuse_timesteps, step_count
from calotype.schedulers.grid import Grid
from calotype.schedulers.multistep import MultistepScheduler
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY


class DPMSolverMultistepScheduler(MultistepScheduler):
    """One exponential integral a step over the last ``solver_order`` predictions: of x̂0 (``++``) or of ε̂."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        self._configure()
        one_of("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        one_of("time_shift_type", time_shift_type, ("exponential",))
        if not self._data and final_sigmas_type == "zero":
            raise InputError(
                f"algorithm_type={algorithm_type!r} predicts noise and cannot step to a level without any: set "
                f"final_sigmas_type='sigma_min', or algorithm_type='{algorithm_type}++'."
            )
        self._fractional = beta_schedule == "squaredcos_cap_v2"
        self._make_table(zero_snr_floor=True)

    def _begin_initial(self) -> None:
        self._begin_training_grid()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps. ``mu``: flow levels are shifted by exp(mu)."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is not None:
            refuse_timesteps(self.config)
        steps = step_count(num_inference_steps if timesteps is None else len(timesteps))
        t, levels = self._ladder(steps, timesteps, mu)
        final = 0.0 if self.config.final_sigmas_type == "zero" else self._table.kappa[0]
        self._begin_grid(Grid(t, np.append(levels, final)), device, steps, torch.int64)
