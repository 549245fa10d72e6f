"""DEIS: the exact exponential integral of the polynomial through the last ε̂ (Zhang & Chen, arXiv:2204.13902)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, one_of, step_count
from calotype.schedulers.exponential import exponential_update
from calotype.schedulers.grid import Grid
from calotype.schedulers.multistep import step_order
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.prediction import PREDICTION_TYPES
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY


class DEISMultistepScheduler(PreservingScheduler):
    """x' = (α'/α)·x − α'·Σ m_j ∫e^{−λ}ℓ_j dλ, in the paper's log-ρ variant."""

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
        algorithm_type: str = "deis",
        solver_type: str = "logrho",
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        self._translate("algorithm_type", dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"))
        self._translate("solver_type", dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"))
        self._check((*PREDICTION_TYPES, "flow_prediction"))
        one_of("algorithm_type", self.config.algorithm_type, ("deis",))
        one_of("solver_type", self.config.solver_type, ("logrho",))
        one_of("solver_order", solver_order, (1, 2, 3))
        one_of("time_shift_type", time_shift_type, ("exponential",))
        self._refuse_flow()
        conversion(self.config)
        self._make_table()

    def _begin_initial(self) -> None:
        self._begin_training_grid()

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, mu: float | None = None
    ) -> None:
        """Begin a run of so many steps. ``mu``: flow levels are shifted by exp(mu)."""
        steps = step_count(num_inference_steps)
        t, levels = self._ladder(steps, mu=mu)
        levels = np.append(levels, self._repeated_or_lowest(levels))
        self._begin_grid(Grid(t, levels), device, steps, torch.int64)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on."""
        self._running()
        run, i = self._locate(timestep)
        plan = run.plan
        predicted = self._predict(i, sample, model_output, data=False)
        run.history = (predicted, *run.history[: self.config.solver_order - 1])
        order = step_order(self.config, i, len(run.history), len(plan.t))
        if (i, order) not in plan.memo:
            others = [plan.levels[i - k] for k in range(1, order)]
            plan.memo[i, order] = exponential_update(plan.levels[i], plan.levels[i + 1], others, data=False)
        update = plan.memo[i, order]
        prev_sample = affine((update.sample, sample), *zip(update.predictions, run.history, strict=False))
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)
