"""SA-Solver: stochastic Adams predictor and corrector, with as much noise as τ(t) says (Xue et al., arXiv:2309.05019).

τ = 0 solves the probability-flow ODE, τ = 1 the reverse SDE; every τ has the same marginals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, one_of, step_count
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import Grid
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.prediction import PREDICTION_TYPES, VARIANCE_TYPES
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY


def middle_of_the_chain(t: float) -> float:
    """The paper's choice of τ for latent models: noise only between the training steps 200 and 800."""
    return 1.0 if 200 <= t <= 800 else 0.0


class SASolverScheduler(PreservingScheduler):
    """Each step corrects the sample with the prediction just made, then predicts the next and adds noise."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        predictor_order: int = 2,
        corrector_order: int = 2,
        prediction_type: str = "epsilon",
        tau_func: Callable[[float], float] | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "data_prediction",
        lower_order_final: bool = True,
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
        self._check((*PREDICTION_TYPES, "flow_prediction"))
        one_of("algorithm_type", algorithm_type, ("data_prediction", "noise_prediction"))
        one_of("predictor_order", predictor_order, (1, 2, 3))
        one_of("corrector_order", corrector_order, (1, 2, 3))
        one_of("variance_type", variance_type, (None, *VARIANCE_TYPES))
        self._refuse_flow()
        conversion(self.config)
        self.predict_x0 = algorithm_type == "data_prediction"
        self.tau_func = middle_of_the_chain if tau_func is None else tau_func
        self._make_table()

    def _begin_initial(self) -> None:
        self._begin_training_grid()

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        t, levels = self._ladder(steps)
        levels = np.append(levels, self._repeated_or_lowest(levels))
        self._begin_grid(Grid(t, levels), device, steps, torch.int64)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample at the next level, after correcting the one at this level; draws noise at every step."""
        self._running()
        run, i = self._locate(timestep)
        config, plan = self.config, run.plan
        if config.variance_type in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        predicted = self._predict(i, sample, model_output, data=self.predict_x0)
        if run.stage is not None:
            sample = self._corrected(run, i, predicted)
        run.history = (predicted, *run.history[:2])
        order = min(config.predictor_order, len(run.history))
        if config.lower_order_final:
            order = min(order, len(plan.t) - i)
        z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
        run.stage = sample, z
        update = self._update(
            plan, i, i + 1, [i - k for k in range(1, order)], float(self.tau_func(plan.t[i]))
        )
        terms = zip(update.predictions, run.history, strict=False)
        prev_sample = affine((update.sample, sample), *terms, (update.noise, z))
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    def _corrected(self, run: Run, i: int, predicted: torch.Tensor) -> torch.Tensor:
        """The sample at level ``i`` again, with the noise that led there and the prediction made here."""
        start, z = run.stage
        order = min(self.config.corrector_order, len(run.history) + 1)
        others = [i, *(i - k for k in range(2, order))] if order > 1 else []
        update = self._update(run.plan, i - 1, i, others, float(self.tau_func(run.plan.t[i - 1])))
        newest, *older = run.history
        known = (newest, predicted, *older) if order > 1 else (predicted,)
        terms = zip(update.predictions, known, strict=False)
        return affine((update.sample, start), *terms, (update.noise, z))

    def _update(self, plan: Plan, s: int, t: int, others: Sequence[int], tau: float) -> Update:
        """The weights from level ``s`` to ``t``; two nodes weigh the slope with half of the step."""
        key = s, t, tuple(others), tau
        if key not in plan.memo:
            rule = "linear" if len(others) == 1 and self.predict_x0 else "exact"
            levels = plan.levels
            nodes = [levels[k] for k in others]
            plan.memo[key] = exponential_update(
                levels[s], levels[t], nodes, data=self.predict_x0, tau=tau, rule=rule
            )
        return plan.memo[key]
