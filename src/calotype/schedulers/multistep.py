"""DPM-Solver's multistep step: one exponential integral over the last predictions, of x̂0 or of ε̂."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, one_of
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.prediction import PREDICTION_TYPES, VARIANCE_TYPES
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.transfer import Level

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def step_order(config: Mapping[str, Any], i: int, known: int, steps: int) -> int:
    """The order of step ``i`` of ``steps`` with ``known`` predictions: short runs end with lower ones, and no step to
    a level without noise is above 1."""
    order = min(config["solver_order"], known)
    few = config["lower_order_final"] and steps < 15
    last = config.get("euler_at_final") or few or config.get("final_sigmas_type") == "zero"
    if i == steps - 1 and last:
        return 1
    return min(order, 2) if i == steps - 2 and few else order


def multistep_update(
    levels: Sequence[Level], i: int, order: int, solver_type: str, *, data: bool, tau: float
) -> Update:
    """The weights of step ``i`` over the predictions at steps i, i−1, …: DPM-Solver's second order by
    ``solver_type``, its third with half of the curvature."""
    rule = ("exact", {"midpoint": "midpoint", "heun": "exact"}[solver_type], "halved")[order - 1]
    others = [levels[i - k] for k in range(1, order)]
    return exponential_update(levels[i], levels[i + 1], others, data=data, tau=tau, rule=rule)


class MultistepScheduler(PreservingScheduler):
    """Base of DPMSolverMultistepScheduler and its inverse."""

    def _configure(self) -> None:
        """Check the options and make the noise table."""
        self._translate("algorithm_type", {"deis": "dpmsolver++"})
        self._translate("solver_type", dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
        config = self.config
        self._check((*PREDICTION_TYPES, "flow_prediction"))
        one_of("algorithm_type", config.algorithm_type, ALGORITHMS)
        one_of("solver_type", config.solver_type, ("midpoint", "heun"))
        one_of("solver_order", config.solver_order, (1, 2, 3))
        one_of("variance_type", config.variance_type, (None, *VARIANCE_TYPES))
        self._refuse_flow()
        conversion(config)
        self._data = config.algorithm_type.endswith("++")
        self._tau = 1.0 if config.algorithm_type.startswith("sde") else 0.0

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on. The SDE variants draw float32 noise, or take ``variance_noise``."""
        self._running()
        run, i = self._locate(timestep)
        config, plan = self.config, run.plan
        dtype = model_output.dtype
        if config.variance_type in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        predicted = self._predict(i, sample, model_output, data=self._data)
        run.history = (predicted, *run.history[: config.solver_order - 1])
        order = step_order(config, i, len(run.history), len(plan.t))
        if (i, order) not in plan.memo:
            plan.memo[i, order] = multistep_update(
                plan.levels, i, order, config.solver_type, data=self._data, tau=self._tau
            )
        update = plan.memo[i, order]
        terms = [
            (update.sample, sample.to(torch.float32)),
            *zip(update.predictions, run.history, strict=False),
        ]
        if self._tau:
            if variance_noise is None:
                z = randn_tensor(model_output.shape, generator, model_output.device, torch.float32)
            else:
                z = variance_noise.to(model_output.device, torch.float32)
            terms.append((update.noise, z))
        prev_sample = affine(*terms).to(dtype)
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)
