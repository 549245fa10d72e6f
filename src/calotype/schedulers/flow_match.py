"""Rectified flows: samples (1 − σ)·x0 + σ·ε along levels that a shift moves towards noise; Euler, Heun, consistency.

Liu et al., arXiv:2209.03003; Lipman et al., arXiv:2210.02747; Esser et al., arXiv:2403.03206.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import grid, levels
from calotype.schedulers.affine import affine, cast, evaluate
from calotype.schedulers.euler import STILL, Churn
from calotype.schedulers.options import Device, Numbers, constructor, conversion, one_of, step_count
from calotype.schedulers.sigmas import SigmaScheduler
from calotype.schedulers.stepping import Step, Values, stepping

SHIFTED = (
    "num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len "
    "invert_sigmas shift_terminal CONVERTED time_shift_type"
)
UPSCALE_MODES = ("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact")


class FlowScheduler(SigmaScheduler):
    """Base of the flow-matching methods.

    ``sigma_min`` and ``sigma_max`` are the ends of the trained levels, shifted. A run of so many steps is spaced
    between them and shifted once more, as Stable Diffusion 3 was published with: its checkpoints depend on it.
    Levels that are given (``sigmas=np.linspace(1, 1 / n, n)``, as Flux does) are shifted once.
    """

    _coordinates = levels.Coordinates(levels.flow)
    init_noise_sigma: float = 1.0

    def _prepare(self) -> None:
        """The trained levels and their ends."""
        config, total = self.config, self.config.num_train_timesteps
        self._shift = config.shift
        trained = np.linspace(1, total, total, dtype=np.float32)[::-1] / np.float32(total)
        if not config.get("use_dynamic_shifting"):
            trained = grid.shifted(trained, config.shift)
        self._trained = trained.astype(np.float32)
        self.sigma_min, self.sigma_max = float(self._trained[-1]), float(self._trained[0])

    def _begin_initial(self) -> None:
        self._begin_levels(self._trained * np.float32(len(self._trained)), self._trained)

    @property
    def shift(self) -> float:
        """How far levels are moved towards noise: s·σ/(1 + (s − 1)·σ)."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Another shift for the runs to come; the ends of the trained levels stay."""
        self._shift = shift

    def _spaced_levels(self, steps: int) -> np.ndarray:
        """Levels evenly spaced between the ends of the trained ones."""
        total = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * total, self.sigma_min * total, steps) / total

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """(1 − σ)·sample + σ·noise at the levels of ``timestep`` (elements of the schedule, one an item)."""
        if noise is None:
            raise InputError("scale_noise needs the noise to mix in.")
        return self.add_noise(sample, noise, torch.as_tensor(timestep).reshape(-1))


class ShiftedFlowScheduler(FlowScheduler):
    """Base of Euler's method and consistency sampling: the same schedule, with its shift by the size of the picture."""

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """m/(m + (1/t − 1)^σ) with m = e^μ, or μ itself where ``time_shift_type`` is linear."""
        strength = np.exp(mu) if self.config.time_shift_type == "exponential" else mu
        return strength / (strength + (1 / t - 1) ** sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Levels stretched away from 1 so that the last is ``shift_terminal``; the level 1 alone stays."""
        return grid.stretched(t, self.config.shift_terminal)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        sigmas: Numbers = None,
        mu: float | None = None,
        timesteps: Numbers = None,
    ) -> None:
        """Begin a run of so many steps, or at these levels or timesteps. ``mu`` shifts them (dynamic shifting)."""
        config = self.config
        if config.use_dynamic_shifting and mu is None:
            raise InputError("use_dynamic_shifting=True needs mu, the shift for this size of picture.")
        given = {"sigmas": sigmas, "timesteps": timesteps}
        counts = {name: len(values) for name, values in given.items() if values is not None}
        if num_inference_steps is not None or not counts:
            counts["num_inference_steps"] = step_count(num_inference_steps)
        if len(set(counts.values())) > 1:
            raise InputError(
                f"The numbers of steps differ: {', '.join(f'{k}: {v}' for k, v in counts.items())}."
            )
        steps = step_count(next(iter(counts.values())))

        t = None if timesteps is None else np.asarray(timesteps, dtype=np.float32)
        if sigmas is not None:
            ladder = np.asarray(sigmas, dtype=np.float32)
        else:
            ladder = self._spaced_levels(steps) if t is None else t / config.num_train_timesteps
        if config.use_dynamic_shifting and mu is not None:
            ladder = self.time_shift(mu, 1.0, ladder)
        else:
            ladder = grid.shifted(ladder, self.shift)
        if config.shift_terminal:
            ladder = self.stretch_shift_to_terminal(ladder)
        kind, final = conversion(config), 0.0
        if kind:
            low, high = (config.get(name) for name in ("sigma_min", "sigma_max"))
            low, high = ladder[-1] if low is None else low, ladder[0] if high is None else high
            ladder = grid.converted(kind, float(low), float(high), steps)
        ladder = ladder.astype(np.float32)
        if config.invert_sigmas:
            ladder, final, t = 1 - ladder, 1.0, None
        t = ladder * config.num_train_timesteps if t is None else t
        self._begin_levels(t, np.append(ladder, final), device, steps, torch.float32)


class FlowMatchEulerDiscreteScheduler(ShiftedFlowScheduler):
    """x' = x + (σ' − σ)·u; with ``stochastic_sampling`` instead x̂0 noised anew, (1 − σ')·x̂0 + σ'·z."""

    __init__ = constructor(f"{SHIFTED} stochastic_sampling")

    @stepping(fractional=True)
    def step(self, at: Step, churn: Churn = STILL, per_token_timesteps: Tensor | None = None) -> Values:
        """The sample one step on; the ``s_…`` have no effect on this method.

        ``per_token_timesteps`` (batch, tokens) gives tokens levels of their own: each goes on to the schedule's next
        level below, in float32, and ``model_output`` is −u.
        """
        sample, output, z = at.sample, at.output, None
        if self.config.stochastic_sampling:
            z = randn_tensor(sample.shape, churn.generator, sample.device, torch.float32)
        if per_token_timesteps is not None:
            own, down = self._token_levels(per_token_timesteps)
            sample = sample.to(torch.float32)
            if z is None:
                return (sample + (own - down) * output,)
            return ((1 - down) * (sample - own * output) + down * z,)
        x, (sigma, following) = cast(sample, torch.float32), at.plan.kappa[at.i : at.i + 2]
        if z is None:
            return (affine((1.0, x), (following - sigma, output), dtype=output.dtype),)
        clean = affine((1.0, x), (-sigma, output))
        return (affine((1 - following, clean), (following, z), dtype=output.dtype),)

    def _token_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's level and the schedule's next below it, both (batch, tokens, 1)."""
        own = timesteps / self.config.num_train_timesteps
        ladder = self.sigmas.to(own.device)[:, None, None]
        down = ((ladder < own - 1e-6) * ladder).amax(0)
        return own[..., None], down[..., None]


class FlowMatchHeunDiscreteScheduler(FlowScheduler):
    """Two evaluations a step, at both its ends, one for the last; x' is made with the mean of the slopes
    (Karras et al., arXiv:2206.00364, algorithm 2, in σ = t)."""

    order = 2

    __init__ = constructor("num_train_timesteps shift")

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps; ``timesteps`` has two entries for each but the last."""
        steps = step_count(num_inference_steps)
        ladder = grid.shifted(self._spaced_levels(steps), self.shift).astype(np.float32)
        ladder = np.append(ladder, np.float32(0))[np.repeat(np.arange(steps + 1), 2)[1:-1]]
        t = ladder[:-1] * self.config.num_train_timesteps
        self._begin_levels(t, ladder, device, steps, torch.float32)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next evaluation begins a step."""
        return self._run.stage is None

    @stepping(fractional=True)
    def step(self, at: Step, churn: Churn = STILL) -> Values:
        """The sample at the end of the step: provisional after its first evaluation, corrected after the second.

        With ``s_churn`` noise is added first where a step begins with σ in [``s_tmin``, ``s_tmax``]; as much is
        drawn, and left unused, at its second evaluation.
        """
        run, kappa, output = at.run, at.plan.kappa, at.output
        sigma = kappa[at.i] if run.stage is None else kappa[at.i - 1]  # that the step begins at
        x, raised = churn.raised(at, sigma)
        if run.stage is not None:
            (halfway, step), run.stage = run.stage, None
            return (affine((1.0, halfway), (step / 2, output), dtype=output.dtype),)
        step, slope = kappa[at.i + 1] - raised, sigma / raised
        end = affine((1.0, x), (step * slope, output), dtype=output.dtype)
        prev_sample, halfway = evaluate(end, affine((1.0, x), (step / 2 * slope, output)))
        run.stage = halfway, step
        return (prev_sample,)


class FlowMatchLCMScheduler(ShiftedFlowScheduler):
    """Consistency sampling of distilled flows: x' = (1 − σ')·x̂0 + σ'·z. With ``scale_factors``, one for each step but
    the last, x̂0 is first resized to that multiple of its first size (Starodubcev et al., arXiv:2503.16397)."""

    def _prepare_sizes(self) -> None:
        self._prepare()
        self.set_scale_factors(self.config.scale_factors, self.config.upscale_mode)

    __init__ = constructor(f"{SHIFTED} scale_factors upscale_mode", setup=_prepare_sizes)

    def set_scale_factors(self, scale_factors: Sequence[float] | None, upscale_mode: str) -> None:
        """Other sizes for the runs to come."""
        one_of("upscale_mode", upscale_mode, UPSCALE_MODES)
        self._factors, self._mode = tuple(scale_factors or ()), upscale_mode

    @stepping(fractional=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; draws noise at every step, the last included."""
        steps, run, output = len(at.plan.t), at.run, at.output
        if self._factors and len(self._factors) != steps - 1:
            raise InputError(
                f"scale_factors has {len(self._factors)} entries for a run of {steps} steps: give one for each "
                f"step but the last."
            )
        sigma, following = at.plan.kappa[at.i : at.i + 2]
        if run.stage is None:
            run.stage = output.shape[2:]  # the size of the first sample
        x0, shape = affine((1.0, cast(at.sample, torch.float32)), (-sigma, output)), output.shape
        if at.i < len(self._factors):
            size = [round(self._factors[at.i] * n) for n in run.stage]
            x0 = torch.nn.functional.interpolate(evaluate(x0)[0], size=size, mode=self._mode)
            shape = x0.shape
        z = randn_tensor(shape, generator, output.device, torch.float32)
        return (affine((1 - following, x0), (following, z), dtype=output.dtype),)
