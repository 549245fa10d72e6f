"""DPM-Solver++ run upward, from a picture to the noise that leads to it (inversion)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.schedulers.checks import conversion, step_count
from calotype.schedulers.grid import Grid, spaced
from calotype.schedulers.multistep import MultistepScheduler
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY


class DPMSolverMultistepInverseScheduler(MultistepScheduler):
    """The steps of DPMSolverMultistepScheduler over the ascending grid, ending at the table's highest level."""

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
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        self._configure()
        self._make_table()

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Begin a run of so many steps upward."""
        steps = step_count(num_inference_steps)
        config, kappa = self.config, self._table.kappa
        if conversion(config) or config.use_flow_sigmas:
            t, levels = (x[::-1] for x in self._ladder(max(steps, 2)))
            t, levels = t[:steps], levels[:steps]
            final = levels[-1]
        else:
            top, spacing = self._usable, config.timestep_spacing
            if spacing == "linspace":
                t = np.linspace(0, top - 1, steps + 1)[:steps].round()
            elif spacing == "leading":
                t = spaced(spacing, steps + 1, top, config.steps_offset)[:0:-1]
            else:
                t = self._spaced_steps(steps)[::-1]
            levels, final = np.interp(t, np.arange(len(kappa)), kappa), kappa[top - 1]
        self._begin_grid(Grid(t, np.append(levels, final)), device, steps, torch.int64)

    def _begin_initial(self) -> None:
        kappa = self._table.kappa
        self._begin_grid(Grid(np.arange(len(kappa)), kappa), None, None, torch.float32)
