"""Steps with an evaluation in the middle: the grid on which a caller's loop visits both, and the step itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from calotype.schedulers.affine import affine
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.grid import Grid
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.run import Run


class MidpointScheduler(ExplodingScheduler):
    """Base of KDPM2 and its ancestral form (Karras et al., arXiv:2206.00364, algorithm 2 of appendix; DPM-Solver-2).

    A plan's ``kappa`` are the levels of the evaluations, κ_0, κ_mid, κ_1, …; the public ``sigmas`` has each step's
    ends twice, as two-stage methods do.
    """

    order = 2

    def _ends(self, steps: int, total: int | None) -> tuple[np.ndarray, np.ndarray, torch.dtype]:
        """Training steps and levels (float32) at which steps begin, and the dtype that the training steps have."""
        config = self.config
        t, kappa = self._ladder(steps, None, total)
        if config.use_karras_sigmas:
            t = t.round()
        converted = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas
        return t, kappa.astype(np.float32), torch.float64 if converted else torch.float32

    def _begin_stages(
        self,
        t: np.ndarray,
        kappa: np.ndarray,
        middle: np.ndarray,
        device: Any,
        dtype: torch.dtype,
        finals: int,
    ) -> None:
        """Begin a run over steps from ``kappa`` to the next with evaluations at ``middle``; the last step has none.

        ``sigmas`` shows the ends of the steps, each twice, and the final level ``finals`` times.
        """
        steps = len(t)
        walk, levels = np.empty(2 * steps - 1), np.empty(2 * steps)
        walk[0::2], walk[1::2] = t, sigma_to_t(middle, self._table.log_kappa)
        levels[0:-1:2], levels[1:-1:2], levels[-1] = kappa[:-1], middle, kappa[-1]
        self._begin_grid(Grid(walk, levels), device, steps, dtype)
        ends = np.repeat(kappa, [1, *[2] * (steps - 1), finals]).astype(np.float32)
        self._start(replace(self._plan, sigmas=torch.from_numpy(ends)))

    def _advance(
        self, run: Run, i: int, sample: torch.Tensor, output: torch.Tensor, target: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sample after evaluation ``i`` and x̂0: at the midpoint, or from the step's beginning to ``target``."""
        kappa = run.plan.kappa
        x0 = self._clean(self.config.prediction_type, kappa[i]).of(sample, output)
        if run.stage is None:
            run.stage = sample
            return affine((kappa[i + 1] / kappa[i], sample), (1 - kappa[i + 1] / kappa[i], x0)), x0
        start, run.stage = run.stage, None
        slope = self._slope(self.config.prediction_type, kappa[i]).of(sample, output)
        return affine((1.0, start), (target - kappa[i - 1], slope)), x0
