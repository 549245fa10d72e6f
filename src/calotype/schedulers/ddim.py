"""DDIM: the transfer of family A over the training steps (Song et al., arXiv:2010.02502), down, in parallel, and up;
and RePaint, down and back up around a known picture."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine, combined, evaluate
from calotype.schedulers.levels import Level, Lines, clean, lines, transfer
from calotype.schedulers.options import LEADING, Device, choice, constructor, step_count
from calotype.schedulers.stepping import PredictionSchedulerOutput, Step, Values, once, stepping
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
        "TABLE clip_sample set_alpha_to_one steps_offset prediction_type thresholding dynamic_thresholding_ratio "
        "clip_sample_range sample_max_value timestep_spacing rescale_betas_zero_snr",
        timestep_spacing=LEADING,
    )

    set_timesteps = TableScheduler._begin_spaced

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
        "TABLE clip_sample set_alpha_to_one steps_offset prediction_type clip_sample_range timestep_spacing "
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
        steps = step_count(num_inference_steps, self.config.num_train_timesteps)
        self._begin(self._spaced(steps)[::-1], device, steps)

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


class RePaintScheduler(TableScheduler):
    """Inpainting with a model trained for nothing of the kind (Lugmayr et al., arXiv:2201.09865): the transfer of
    family A where the picture is unknown, the known picture noised where it is.

    ``timesteps`` fall and jump back up by turns (algorithm 1 and figure 9): the caller undoes steps where they rise.
    """

    _compatibles = ()

    def _prepare_noise(self) -> None:
        self._prepare()
        self.eta = self.config.eta

    __init__ = constructor(
        "num_train_timesteps beta_start beta_end beta_schedule eta trained_betas clip_sample",
        setup=_prepare_noise,
        beta_schedule=choice("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    )

    def set_timesteps(
        self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10, device: Device = None
    ) -> None:
        """Begin a run of so many steps; each stretch of ``jump_length`` is walked ``jump_n_sample`` times."""
        total = self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        if jump_length < 1 or jump_n_sample < 1:
            raise InputError(
                f"jump_length={jump_length} and jump_n_sample={jump_n_sample} must be at least 1."
            )
        left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_n_sample - 1)
        walk, t = [], steps
        while t > 0:
            t -= 1
            walk.append(t)
            if left.get(t, 0) > 0:
                left[t] -= 1
                walk.extend(range(t + 1, t + jump_length + 1))
                t += jump_length
        self._begin(np.array(walk) * (total // steps), device, steps)

    @stepping(PredictionSchedulerOutput, indexed=False, begun=True)
    def step(self, at: Step, original_image: Tensor, mask: Tensor, generator: Generators = None) -> Values:
        """The sample one step on; ``mask`` is 1 where ``original_image`` is kept. Draws noise at every step."""
        t = at.t
        s, to = self._level(t), self._level(t - self._jump)
        toward, direction, fresh = transfer(s, to, self.eta if t > 0 else 0.0)
        x0, z = clean("epsilon", *s).of(at.sample, at.output, self._limits), at.noise(generator)
        unknown = affine((toward, x0), (direction, at.output), (fresh, z))
        known = affine((to.alpha, original_image), (to.sigma, z))
        unknown, known, x0 = evaluate(unknown, known, x0)
        return mask * known + (1.0 - mask) * unknown, x0

    def undo_step(self, sample: Tensor, timestep: int, generator: Generators = None) -> Tensor:
        """The sample one step back up, by the training steps from ``timestep`` on, each with noise of its own."""
        t = int(self._running().plan.value(timestep))
        for beta in self.betas[t : t + self._jump].tolist():
            z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            sample = combined((math.sqrt(1 - beta), sample), (math.sqrt(beta), z))
        return sample
