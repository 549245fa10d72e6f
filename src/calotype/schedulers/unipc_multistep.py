"""UniPC: a multistep predictor, and a corrector that reuses the prediction at the level it led to.

Zhao et al., arXiv:2302.04867. Predictor and corrector are one exponential integral each, the corrector from the level
before, with the new prediction among its nodes; bh1 and bh2 differ only in the weight of the first slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, one_of, step_count
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import Grid, shifted
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.prediction import PREDICTION_TYPES
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY


class UniPCMultistepScheduler(PreservingScheduler):
    """Each step corrects the sample with the prediction just made, then predicts the next with the last ones."""

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
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: Sequence[int] = [],
        solver_p: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift_terminal: float | None = None,
    ) -> None:
        self._translate("solver_type", dict.fromkeys(("midpoint", "heun", "logrho"), "bh2"))
        self._check((*PREDICTION_TYPES, "flow_prediction"))
        one_of("solver_type", self.config.solver_type, ("bh1", "bh2"))
        one_of("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        one_of("time_shift_type", time_shift_type, ("exponential", "linear"))
        one_of("solver_order", solver_order, range(1, 10))
        self._refuse_flow()
        if shift_terminal is not None and not use_flow_sigmas:
            raise InputError("shift_terminal stretches the levels of a flow: it needs use_flow_sigmas=True.")
        conversion(self.config)
        self.predict_x0, self.solver_p = predict_x0, solver_p
        self.disable_corrector = list(disable_corrector)
        self._make_table(zero_snr_floor=True)

    def _begin_initial(self) -> None:
        self._begin_training_grid()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run of so many steps, or over the flow levels ``sigmas`` (without the final one)."""
        config = self.config
        if sigmas is not None and not config.use_flow_sigmas:
            raise InputError("sigmas are the levels of a flow: they need use_flow_sigmas=True.")
        if config.use_dynamic_shifting and mu is None:
            raise InputError("use_dynamic_shifting=True needs the shift: give set_timesteps(mu=...).")
        steps = step_count(num_inference_steps if sigmas is None else len(sigmas))
        if config.use_flow_sigmas:
            t, levels = self._flow(steps, sigmas, mu)
        else:
            t, levels = self._ladder(steps)
        final = 0.0
        if config.final_sigmas_type == "sigma_min":
            final = self._repeated_or_lowest(levels)
        self._begin_grid(Grid(t, np.append(levels, final)), device, steps, torch.int64)
        if self.solver_p is not None:
            self.solver_p.set_timesteps(steps, device=device)

    def _flow(self, steps: int, sigmas: Any, mu: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and levels of a flow, shifted and never quite 1."""
        config, total = self.config, self.config.num_train_timesteps
        if sigmas is None and conversion(config):
            return self._ladder(steps)
        levels = (
            np.linspace(1, 1 / total, steps + 1)[:-1] if sigmas is None else np.asarray(sigmas, np.float64)
        )
        if mu is None:
            levels = shifted(levels, config.flow_shift)
        else:
            levels = shifted(levels, float(np.exp(mu)) if config.time_shift_type == "exponential" else mu)
        if config.shift_terminal:
            levels = 1 - (1 - levels) / ((1 - levels[-1]) / (1 - config.shift_terminal))
        if abs(levels[0] - 1) < 1e-6:
            levels[0] -= 1e-6
        return levels * total, levels

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample at the next level, after correcting the one at this level."""
        self._running()
        run, i = self._locate(timestep)
        config, plan = self.config, run.plan
        predicted = self._predict(i, sample, model_output, data=self.predict_x0)
        if run.stage is not None and i > 0 and i - 1 not in self.disable_corrector:
            sample = self._corrected(run, i, predicted)
        run.history = (predicted, *run.history[: config.solver_order - 1])
        order = min(config.solver_order, len(run.history))
        if config.lower_order_final:
            order = min(order, len(plan.t) - i)
        run.stage = sample, order
        if self.solver_p is not None:
            prev_sample = self.solver_p.step(model_output, timestep, sample).prev_sample
        else:
            if ("predictor", i, order) not in plan.memo:
                plan.memo["predictor", i, order] = self._update(
                    plan, i, i + 1, [i - k for k in range(1, order)], first=order == 2
                )
            update = plan.memo["predictor", i, order]
            prev_sample = affine((update.sample, sample), *zip(update.predictions, run.history, strict=False))
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    def _corrected(self, run: Run, i: int, predicted: torch.Tensor) -> torch.Tensor:
        """The sample at level ``i`` again, from the one before and with the prediction made here."""
        start, order = run.stage
        memo = run.plan.memo
        if ("corrector", i, order) not in memo:
            others = [i, *(i - k for k in range(2, order + 1))]
            memo["corrector", i, order] = self._update(run.plan, i - 1, i, others, first=order == 1)
        update = memo["corrector", i, order]
        newest, *older = run.history
        return affine(
            (update.sample, start), *zip(update.predictions, (newest, predicted, *older), strict=False)
        )

    def _update(self, plan: Plan, s: int, t: int, others: Sequence[int], *, first: bool) -> Update:
        """The weights from level ``s`` to ``t``; a lone slope has the weight of bh1 or bh2."""
        rule = {"bh1": "linear", "bh2": "midpoint"}[self.config.solver_type] if first else "exact"
        levels = plan.levels
        return exponential_update(
            levels[s], levels[t], [levels[k] for k in others], data=self.predict_x0, rule=rule
        )
