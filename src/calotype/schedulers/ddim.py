"""DDIM: the transfer of family A over the training steps (Song et al., arXiv:2010.02502), down, in parallel, and up."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.schedulers.affine import affine
from calotype.schedulers.levels import Level, transfer
from calotype.schedulers.options import LEADING, TABLE, Device, choice, constructor
from calotype.schedulers.prediction import Lines, lines
from calotype.schedulers.run import Step
from calotype.schedulers.stepping import PredictionSchedulerOutput, Values, once, stepping
from calotype.schedulers.table import TableScheduler, columns

Weights = tuple[float, float, float]


class ImplicitScheduler(TableScheduler):
    """Base of DDIM, up and down: one step of it."""

    def _transferred(
        self, at: Step, said: Lines, weights: Weights, z: Tensor | None = None, *, clipped: bool = False
    ) -> Values:
        """x', by the weights of x̂0, ε̂ and new noise, and x̂0. ``clipped`` finds ε̂ by way of x̂0."""
        toward, direction, fresh = weights
        x0 = said.clean.of(at.sample, at.output, self._limits)
        along, across = (said.from_clean if clipped else said.noise).weights
        other = x0 if clipped else at.output
        terms = [(toward, x0), (direction * along, at.sample), (direction * across, other)]
        if z is not None:
            terms.append((fresh, z))
        return affine(*terms), x0


class DownwardScheduler(ImplicitScheduler):
    """Base of DDIM and its form for parallel sampling: the same configuration, schedule and step."""

    __init__ = constructor(
        f"{TABLE} clip_sample set_alpha_to_one steps_offset prediction_type thresholding dynamic_thresholding_ratio "
        "clip_sample_range sample_max_value timestep_spacing rescale_betas_zero_snr",
        timestep_spacing=LEADING,
    )

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps."""
        self._begin_spaced(num_inference_steps, device)

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(
        self,
        at: Step,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> Values:
        """The sample one step on. ``use_clipped_model_output`` recomputes ε̂ from the clipped x̂0. With ``eta`` > 0
        noise is drawn, or ``variance_noise`` taken."""
        z = variance_noise if eta > 0 else None
        if eta > 0 and z is None:
            z = at.noise(generator)
        elif z is not None and generator is not None:
            raise InputError("Give either a generator or variance_noise, not both.")
        said, weights = self._coefficients(at.t, eta)
        return self._transferred(at, said, weights, z, clipped=use_clipped_model_output)

    @once
    def _coefficients(self, t: int, eta: float) -> tuple[Lines, Weights]:
        """What the network says at a training step, and the weights of the step from there."""
        return self._lines(t), transfer(self._level(t), self._level(t - self._jump), eta)


class DDIMScheduler(DownwardScheduler):
    """x' = α'·x̂0 + √(σ'² − ς²)·ε̂ + ς·z, where the next step is always T//N training steps on; η = 1 is like DDPM."""


class DDIMParallelScheduler(DownwardScheduler):
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
        for said, weights in (self._coefficients(t, eta) for t in timesteps.tolist()):
            line = said.from_clean if use_clipped_model_output else said.noise
            rows.append((*said.clean, *line, *weights[:2]))
        x, m, divisor, along, across, under, toward, direction = columns(rows, sample)
        x0 = self._limits.apply((x * sample + m * model_output) / divisor)
        other = x0 if use_clipped_model_output else model_output
        return toward * x0 + direction * ((along * sample + across * other) / under)


class DDIMInverseScheduler(ImplicitScheduler):
    """DDIM upwards, from a picture to its noise (section 4.3): x' = α'·x̂0 + σ'·ε̂ with rising noise. The output at
    ``timestep`` is taken for that of the level before it."""

    _compatibles = ()

    __init__ = constructor(
        f"{TABLE} clip_sample set_alpha_to_one steps_offset prediction_type clip_sample_range timestep_spacing "
        "rescale_betas_zero_snr",
        timestep_spacing=choice("leading", "trailing"),
        former={"set_alpha_to_zero": "set_alpha_to_one"},
    )

    @property
    def initial_alpha_cumprod(self) -> Tensor:
        """ᾱ that a run begins with."""
        return self.final_alpha_cumprod

    def _begin_initial(self) -> None:
        self._begin(np.arange(self.config.num_train_timesteps))

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps, upwards."""
        self._begin_spaced(num_inference_steps, device, upward=True)

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(self, at: Step) -> Values:
        """The sample at ``timestep``, from T//N training steps below it."""
        return self._transferred(at, *self._coefficients(at.t))

    @once
    def _coefficients(self, t: int) -> tuple[Lines, Weights]:
        kind = self.config.prediction_type
        s: Level = self._level(min(t - self._jump, self.config.num_train_timesteps - 1))
        if s.sigma == 0 and kind == "sample":
            raise InputError(
                "From a clean sample no noise can be told apart by prediction_type='sample': set "
                "set_alpha_to_one=False."
            )
        return lines(kind, *s), transfer(s, self._level(t))
