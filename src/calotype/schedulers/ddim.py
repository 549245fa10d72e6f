"""DDIM: the transfer of family A over the training steps (Song et al., arXiv:2010.02502), down, in parallel, and up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import Value, affine
from calotype.schedulers.options import TABLE, Device, choice, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.run import Run
from calotype.schedulers.stepping import stepping
from calotype.schedulers.table import TableScheduler, columns
from calotype.schedulers.transfer import fresh_noise, transfer


class Implicit(NamedTuple):
    """The lines of x̂0, of ε̂, and of ε̂ by way of x̂0; the weights of x̂0 and ε̂ in x'; and that of the new noise."""

    clean: prediction.Linear
    noise: prediction.Linear
    from_clean: prediction.Linear
    toward: float
    direction: float
    fresh: float


class ImplicitScheduler(TableScheduler):
    """Base of DDIM and its form for parallel sampling: the same configuration, schedule and step."""

    __init__ = constructor(
        f"{TABLE} clip_sample set_alpha_to_one steps_offset prediction_type thresholding dynamic_thresholding_ratio "
        "clip_sample_range sample_max_value timestep_spacing rescale_betas_zero_snr",
        setup=TableScheduler._make_table,
        timestep_spacing=choice("leading", "linspace", "trailing"),
    )

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps."""
        self._begin_spaced(num_inference_steps, device)

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(
        self,
        run: Run,
        t: int,
        output: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> tuple[Value, Value]:
        """The sample one step on. ``use_clipped_model_output`` recomputes ε̂ from the clipped x̂0. With ``eta`` > 0
        noise is drawn, or ``variance_noise`` taken."""
        at = self._coefficients(t, eta)
        x0 = at.clean.of(sample, output, self._limits)
        line, other = (at.from_clean, x0) if use_clipped_model_output else (at.noise, output)
        along, across = line.weights
        terms = [(at.toward, x0), (at.direction * along, sample), (at.direction * across, other)]
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise InputError("Give either a generator or variance_noise, not both.")
            if variance_noise is None:
                variance_noise = randn_tensor(output.shape, generator, output.device, output.dtype)
            terms.append((at.fresh, variance_noise))
        return affine(*terms), x0

    def _coefficients(self, t: int, eta: float) -> Implicit:
        memo, kind = self._run.plan.memo, self.config.prediction_type
        if (t, eta) not in memo:
            s, to = self._level(t), self._level(t - self._jump)
            fresh = fresh_noise(s, to, eta)
            lines = prediction.clean(kind, *s), prediction.noise(kind, *s), prediction.noise_from_clean(*s)
            memo[t, eta] = Implicit(*lines, *transfer(to, fresh), fresh)
        return memo[t, eta]


class DDIMScheduler(ImplicitScheduler):
    """x' = α'·x̂0 + √(σ'² − ς²)·ε̂ + ς·z, where the next step is always T//N training steps on; η = 1 is like DDPM."""


class DDIMParallelScheduler(ImplicitScheduler):
    """DDIM that can step from many steps at once, for Picard iteration (ParaDiGMS: Shih et al., arXiv:2305.16317)."""

    _is_ode_scheduler = True

    def batch_step_no_noise(
        self,
        model_output: Tensor,
        timesteps: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> Tensor:
        """One deterministic step for a batch whose items are each at a training step of their own, (batch,)."""
        if eta != 0:
            raise InputError(f"eta={eta} would need noise, which this step leaves to the caller: give 0.")
        self._running()
        rows = []
        for t in timesteps.tolist():
            at = self._coefficients(t, eta)
            line = at.from_clean if use_clipped_model_output else at.noise
            rows.append((*at.clean, *line, at.toward, at.direction))
        x, m, divisor, along, across, under, toward, direction = columns(rows, sample)
        x0 = self._limits.apply((x * sample + m * model_output) / divisor)
        other = x0 if use_clipped_model_output else model_output
        return toward * x0 + direction * ((along * sample + across * other) / under)


class DDIMInverseScheduler(TableScheduler):
    """DDIM upwards, from a picture to its noise (section 4.3): x' = α'·x̂0 + σ'·ε̂ with rising noise. The output at
    ``timestep`` is taken for that of the level before it."""

    _compatibles = ()

    __init__ = constructor(
        f"{TABLE} clip_sample set_alpha_to_one steps_offset prediction_type clip_sample_range timestep_spacing "
        "rescale_betas_zero_snr",
        setup=TableScheduler._make_table,
        timestep_spacing=choice("leading", "trailing"),
        former={"set_alpha_to_zero": "set_alpha_to_one"},
    )

    @property
    def initial_alpha_cumprod(self) -> Tensor:
        """ᾱ that a run begins with."""
        return self.final_alpha_cumprod

    def _begin_initial(self) -> None:
        self._begin_table(np.arange(self.config.num_train_timesteps), None, None)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps, upwards."""
        self._begin_spaced(num_inference_steps, device, upward=True)

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(self, run: Run, t: int, output: Tensor, sample: Tensor) -> tuple[Value, Value]:
        """The sample at ``timestep``, from T//N training steps below it."""
        memo = run.plan.memo
        if t not in memo:
            kind = self.config.prediction_type
            s = self._level(min(t - self._jump, self.config.num_train_timesteps - 1))
            if s.sigma == 0 and kind == "sample":
                raise InputError(
                    "From a clean sample no noise can be told apart by prediction_type='sample': set "
                    "set_alpha_to_one=False."
                )
            weights = transfer(self._level(t), 0.0)
            memo[t] = prediction.clean(kind, *s), prediction.noise(kind, *s).weights, weights
        to_clean, (along, across), (toward, direction) = memo[t]
        x0 = to_clean.of(sample, output, self._limits)
        return affine((toward, x0), (direction * along, sample), (direction * across, output)), x0
