"""CogVideoX (Yang et al., arXiv:2408.06072): DDIM and DPM-Solver++ over a table whose SNR is divided by a factor."""

from __future__ import annotations

import torch
from torch import Tensor

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import levels
from calotype.schedulers.affine import affine, evaluate
from calotype.schedulers.exponential import exponential_update
from calotype.schedulers.levels import Level
from calotype.schedulers.noise import make_betas
from calotype.schedulers.options import LATENT, LEADING, choice, constructor
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, stepping
from calotype.schedulers.table import TableScheduler


class ShiftedTableScheduler(TableScheduler):
    """Base of both: the same configuration and schedule; the table is float64.

    ``clip_sample`` has no effect: it is in the configurations, but what these models predict is not a picture.
    """

    def _prepare_shifted(self) -> None:
        config = self.config
        start, end, total = config.beta_start, config.beta_end, config.num_train_timesteps
        self.betas = make_betas(config.beta_schedule, start, end, total, config.trained_betas)
        if config.trained_betas is None and config.beta_schedule == "scaled_linear":
            self.betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64) ** 2
        self.alphas = 1.0 - self.betas
        bar = torch.cumprod(self.alphas, dim=0)
        bar = bar / (config.snr_shift_scale + (1 - config.snr_shift_scale) * bar)
        if config.rescale_betas_zero_snr:
            signal = bar.sqrt()
            bar = ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))).square()
        self._use(bar)

    __init__ = constructor(
        "TABLE clip_sample set_alpha_to_one steps_offset prediction_type clip_sample_range sample_max_value "
        "timestep_spacing rescale_betas_zero_snr snr_shift_scale",
        setup=_prepare_shifted,
        beta_schedule=choice("scaled_linear", "linear", "squaredcos_cap_v2"),
        timestep_spacing=LEADING,
        **LATENT,
    )

    set_timesteps = TableScheduler._begin_spaced

    def _ends(self, t: int) -> tuple[Level, Level, levels.Linear]:
        """The levels of a step from ``t``, there and T//N training steps on, and the line of x̂0."""
        s = self._level(t)
        return s, self._level(t - self._jump), levels.clean(self.config.prediction_type, *s)


class CogVideoXDDIMScheduler(ShiftedTableScheduler):
    """x' = σ'/σ·x + (α' − α·σ'/σ)·x̂0."""

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(
        self,
        at: Step,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> Values:
        """The sample one step on. The method is deterministic: ``eta`` to ``variance_noise`` have no effect."""
        s, to, to_clean = self._ends(at.t)
        along, x0 = to.sigma / s.sigma, to_clean.of(at.sample, at.output)
        return affine((along, at.sample), (to.alpha - s.alpha * along, x0)), x0


class CogVideoXDPMScheduler(ShiftedTableScheduler):
    """SDE-DPM-Solver++ of second order (arXiv:2211.01095): family D with τ = 1 over x̂0 and that of the step before,
    which the caller keeps."""

    def step(
        self,
        model_output: Tensor,
        old_pred_original_sample: Tensor | None,
        timestep: int,
        timestep_back: int | None,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = False,
    ) -> PredictionSchedulerOutput | tuple[Tensor, ...]:
        """The sample one step on and x̂0.

        ``old_pred_original_sample`` is the x̂0 of the step before, at ``timestep_back``; without them the step is of
        first order, as is the one to the clean sample. Second-order steps draw twice and use the second. ``eta``,
        ``use_clipped_model_output`` and ``variance_noise`` have no effect.
        """
        plan = self._running().plan
        t = int(plan.value(timestep))
        s, to, to_clean = self._ends(t)
        x0 = to_clean.of(sample, model_output)
        z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        others, known = [], [x0]
        if old_pred_original_sample is not None and t >= self._jump:
            back = self._level(int(plan.value(timestep_back)))
            if back.alpha > 0:  # else it is infinitely far and has no weight
                others, known = [back], [x0, old_pred_original_sample]
            z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        update = exponential_update(s, to, others, data=True, tau=1.0, rule="midpoint")
        values = evaluate(update.of(sample, known, z), x0)
        return PredictionSchedulerOutput(*values) if return_dict else values
