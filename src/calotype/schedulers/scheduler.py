"""The face that all schedulers share: configuration, files, and the current run of each thread.

A scheduler holds its configuration, its noise table and the plan that was made last. Where a run stands is kept per
thread, so that one object may serve several runs at once; a thread without a run of its own starts one of the last
plan.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from calotype.core.config import ConfigMixin
from calotype.core.errors import InputError
from calotype.schedulers import grid, noise
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import one_of
from calotype.schedulers.coordinates import Coordinates, Flow, VarianceExploding, VariancePreserving
from calotype.schedulers.grid import SPACINGS, Grid
from calotype.schedulers.noise import NoiseTable
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.prediction import PREDICTION_TYPES, Limits, Linear, clean, noise_from_clean
from calotype.schedulers.prediction import noise as eps
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.transfer import Level, level_of_alpha_bar

logger = logging.getLogger(__name__)

__all__ = ["SIGNAL_NOISE_FAMILY", "SchedulerMixin", "SchedulerOutput", "SigmaScheduler", "TableScheduler"]

SIGNAL_NOISE_FAMILY = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
)
"""The classes whose configurations describe the same models."""


class SchedulerMixin(ConfigMixin):
    """Base of all schedulers: loading and saving, the schedule (``timesteps``) and where the current run stands."""

    config_name = "scheduler_config.json"
    has_compatibles: ClassVar[bool] = True
    order: ClassVar[int] = 1

    _plan: Plan
    _local: threading.local

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A scheduler from ``scheduler_config.json`` in a folder or a Hub repository; ``kwargs`` override entries."""
        if pretrained_model_name_or_path is None:
            raise InputError(f"{cls.__name__}.from_pretrained needs the name of a folder or repository.")
        config, unused, _ = cls.load_config(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            return_unused_kwargs=True,
            return_commit_hash=True,
            **kwargs,
        )
        return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **unused)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write ``scheduler_config.json`` into a folder."""
        self.save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def compatibles(self) -> list[type[SchedulerMixin]]:
        """The scheduler classes that can be made from this one's configuration."""
        public = importlib.import_module("calotype")
        names = dict.fromkeys((type(self).__name__, *self._compatibles))
        return [getattr(public, name) for name in names if hasattr(public, name)]

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # The current run.

    def _start(self, plan: Plan) -> None:
        """Make ``plan`` the schedule and begin a run of it in this thread."""
        if "_local" not in self.__dict__:
            self._local = threading.local()
        self._plan = plan
        self._local.run = Run(plan)

    @property
    def _run(self) -> Run:
        try:
            return self._local.run
        except AttributeError:
            run = self._local.run = Run(self._plan)
            return run

    def _running(self) -> Run:
        """The current run; raises ``InputError`` if no number of steps has been chosen."""
        run = self._run
        if run.plan.count is None:
            raise InputError(f"{type(self).__name__} has no schedule yet: call `set_timesteps` first.")
        return run

    @property
    def timesteps(self) -> torch.Tensor:
        """The training steps of the run, descending, on the device that ``set_timesteps`` was given."""
        return self._run.plan.timesteps  # type: ignore[return-value]

    @timesteps.setter
    def timesteps(self, value: torch.Tensor) -> None:
        run = self._run
        run.plan = self._plan = replace(run.plan, timesteps=value, t=tuple(value.tolist()), memo={})

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps asked for; None before ``set_timesteps``."""
        return self._run.plan.count

    @num_inference_steps.setter
    def num_inference_steps(self, value: int | None) -> None:
        run = self._run
        run.plan = self._plan = replace(run.plan, count=value, memo={})

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_local"}
        return {**state, "_current": self._run if "_local" in self.__dict__ else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        run = state.pop("_current")
        self.__dict__.update(state)
        self._local = threading.local()
        if run is not None:
            self._local.run = run


class TabledScheduler(SchedulerMixin):
    """A scheduler over a table ᾱ of training steps, which is public and may be replaced (``alphas_cumprod``)."""

    betas: torch.Tensor
    alphas: torch.Tensor
    _table: NoiseTable

    def _check(self, predictions: Sequence[str] = PREDICTION_TYPES) -> None:
        """Refuse values of the common options that no scheduler, or not this one, knows."""
        config = self.config
        one_of("prediction_type", config.prediction_type, predictions)
        if "timestep_spacing" in config:
            one_of("timestep_spacing", config.timestep_spacing, SPACINGS)

    @cached_property
    def _limits(self) -> Limits:
        """What the configuration wants done to x̂0."""
        config = self.config
        if config.get("thresholding"):
            return Limits(ratio=config.dynamic_thresholding_ratio, largest=config.sample_max_value)
        return Limits(clip=config.clip_sample_range) if config.get("clip_sample") else Limits()

    def _make_table(self, zero_snr_floor: bool = False) -> None:
        """The noise table that the configuration describes. ``zero_snr_floor`` keeps ᾱ_T at 2⁻²⁴ where κ is needed."""
        config = self.config
        one_of("beta_schedule", config.beta_schedule, noise.BETA_SCHEDULES)
        betas = noise.make_betas(
            config.beta_schedule,
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            config.trained_betas,
        )
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        self.betas = noise.zero_terminal_snr(betas) if zero_snr else betas
        self.alphas = 1.0 - self.betas
        bar = torch.cumprod(self.alphas, dim=0)
        if zero_snr and zero_snr_floor:
            bar[-1] = 2.0**-24
        self._table = NoiseTable(bar)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t of every training step."""
        return self._table.alphas_cumprod

    @alphas_cumprod.setter
    def alphas_cumprod(self, value: torch.Tensor) -> None:
        self._table = NoiseTable(value)


class TableScheduler(TabledScheduler):
    """Base of the methods whose levels are those of the training steps themselves (DDPM, DDIM, PNDM, …)."""

    init_noise_sigma: float = 1.0

    def scale_model_input(
        self, sample: torch.Tensor, timestep: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The network's input: the sample itself."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """α_t·x0 + σ_t·ε at the training steps ``timesteps`` (integers, one an item)."""
        alpha, sigma = self._table.alpha_sigma(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """α_t·ε − σ_t·x0, the target of v-prediction."""
        alpha, sigma = self._table.alpha_sigma(sample, timesteps)
        return alpha * noise - sigma * sample

    def _level(self, t: int, final: float = 1.0) -> Level:
        """The level of a training step; before the first step it is that of ᾱ = ``final``."""
        levels = self._table.levels
        if t >= len(levels):
            raise InputError(
                f"timestep {t} is past the last of the {len(levels)} training steps, {len(levels) - 1}."
            )
        return levels[t] if t >= 0 else level_of_alpha_bar(final)

    def _begin_table(self, timesteps: np.ndarray, device: Any, count: int | None) -> None:
        """Begin a run over integer training steps."""
        timesteps = timesteps.astype(np.int64)
        self._start(Plan(torch.from_numpy(timesteps).to(device), count=count, t=tuple(timesteps.tolist())))


class SigmaScheduler(TabledScheduler):
    """Base of the methods that walk along a list of noise levels (``sigmas``) by the index of the step."""

    _coordinates: Coordinates

    def _begin_grid(
        self, grid: Grid, device: Any, count: int | None, dtype: torch.dtype | None = None
    ) -> None:
        """Begin a run over a grid; ``dtype`` is that of the timesteps (default: the grid's)."""
        timesteps = torch.from_numpy(np.ascontiguousarray(grid.timesteps)).to(dtype)
        self._begin_levels(timesteps, torch.from_numpy(grid.sigmas.astype(np.float32)), device, count)

    def _begin_levels(
        self, timesteps: torch.Tensor, sigmas: torch.Tensor, device: Any, count: int | None
    ) -> None:
        kappa = tuple(sigmas.tolist())
        levels = tuple(map(self._coordinates.level, kappa))
        self._start(Plan(timesteps.to(device), sigmas, count, tuple(timesteps.tolist()), kappa, levels))

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels of the run, the final one included; float32 on the CPU."""
        return self._run.plan.sigmas  # type: ignore[return-value]

    @sigmas.setter
    def sigmas(self, value: torch.Tensor) -> None:
        run = self._run
        kappa = tuple(value.tolist())
        levels = tuple(map(self._coordinates.level, kappa))
        run.plan = self._plan = replace(run.plan, sigmas=value, kappa=kappa, levels=levels, memo={})

    @property
    def step_index(self) -> int | None:
        """The index of the next step; None before the first."""
        return self._run.index

    @property
    def begin_index(self) -> int | None:
        """The step that the run begins at, where the caller has set it."""
        return self._run.begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at this step (image-to-image); call it between ``set_timesteps`` and the first step."""
        self._run.begin = begin_index

    def index_for_timestep(self, timestep: Any, schedule_timesteps: torch.Tensor | None = None) -> int:
        """The index of a timestep in the schedule, of several equal ones the second."""
        given = None if schedule_timesteps is None else schedule_timesteps.tolist()
        return self._run.plan.index(timestep, given)

    def _locate(self, timestep: Any) -> tuple[Run, int]:
        """The current run and the index of its next step; ``timestep`` is only read to find the first."""
        run = self._run
        index = run.index
        if index is None:
            index = run.index = run.plan.index(timestep) if run.begin is None else run.begin
        if index >= len(run.plan.kappa) - 1:
            raise InputError(
                f"The run is over after its {len(run.plan.kappa) - 1} steps: call `set_timesteps` to begin another."
            )
        return run, index

    def _indices(self, timesteps: torch.Tensor) -> list[int]:
        """The steps at which items are noised: by their timestep, or where the run stands or begins."""
        run = self._run
        if run.begin is None:
            return [run.plan.index(t) for t in timesteps]
        return [run.begin if run.index is None else run.index] * timesteps.shape[0]

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Clean samples noised to the levels of ``timesteps`` (elements of the schedule, one an item)."""
        alpha, sigma = self._weights(self._run.plan.levels, self._indices(timesteps), original_samples)
        if isinstance(alpha, float):
            return affine((alpha, original_samples), (sigma, noise))
        return alpha * original_samples + sigma * noise

    @staticmethod
    def _weights(levels: Sequence[Any], indices: list[int], like: torch.Tensor) -> tuple[Any, Any]:
        """α and σ at the steps: floats if all are the same, else tensors shaped to multiply ``like``."""
        if len(set(indices)) == 1:
            return levels[indices[0]]
        shape = (-1,) + (1,) * (like.dim() - 1)
        pairs = torch.tensor([levels[i] for i in indices], dtype=torch.float64)
        alpha, sigma = pairs.to(like.device, like.dtype).unbind(1)
        return alpha.reshape(shape), sigma.reshape(shape)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The network's input at the next step: the sample, scaled as the coordinates say."""
        run = self._run
        run.scaled = True
        if not self._coordinates.scales_input:
            return sample
        run, index = self._locate(timestep)
        return sample * self._coordinates.input_scale(run.plan.kappa[index])


class ExplodingScheduler(SigmaScheduler):
    """Base of the methods whose samples are x0 + κ·ε (Euler, Heun, …)."""

    _coordinates = VarianceExploding()

    def _begin_training_grid(self, dtype: torch.dtype) -> None:
        """Every training step and its level: what stands there before a number of steps is chosen."""
        kappa = self._table.kappa[::-1]
        steps = Grid(np.arange(len(kappa))[::-1], np.append(kappa, 0.0))
        self._begin_grid(steps, None, None, dtype)

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """What standard normal noise is multiplied with to become the first sample."""
        largest = self.sigmas.max()
        if self.config.timestep_spacing in ("linspace", "trailing"):
            return largest
        return (largest**2 + 1) ** 0.5

    @property
    def is_scale_input_called(self) -> bool:
        """Whether this run has used ``scale_model_input``."""
        return self._run.scaled

    def _clean(self, kind: str, kappa: float) -> Linear:
        """x̂0 as a line in the (exploding) sample and the network's output."""
        level = self._coordinates.preserving(kappa)
        along, across = clean(kind, *level).weights
        return Linear(along * level.alpha, across)

    def _refuse_index(self, timestep: Any) -> None:
        """Raise ``InputError`` for whole numbers, which are more likely a loop's counter than a timestep."""
        if isinstance(timestep, int) or (
            isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()
        ):
            raise InputError(
                f"{type(self).__name__} takes the elements of `scheduler.timesteps`, which are not integers; "
                f"did you pass the loop's counter?"
            )

    def _warn_unscaled(self, run: Run) -> None:
        if not run.scaled:
            run.scaled = True
            logger.warning(
                "%s.step was called without `scale_model_input` before it: the network's input has to be scaled "
                "for the result to be right.",
                type(self).__name__,
            )


class PreservingScheduler(SigmaScheduler):
    """Base of the methods whose samples are α·x0 + σ·ε along a list of κ, or of flow levels (the DPM-Solver family)."""

    init_noise_sigma: float = 1.0

    @cached_property
    def _coordinates(self) -> Coordinates:  # type: ignore[override]
        return Flow() if self.config.get("use_flow_sigmas") else VariancePreserving()

    def _begin_training_grid(self) -> None:
        """Every training step and its level: what stands there before a number of steps is chosen."""
        kappa = self._table.kappa
        self._begin_grid(Grid(np.arange(len(kappa))[::-1], kappa), None, None, torch.float32)

    def _translate(self, option: str, values: dict[str, str]) -> None:
        """Replace a value of another class's option by what it means here, so that configurations can be exchanged."""
        if self.config[option] in values:
            self.register_to_config(**{option: values[self.config[option]]})

    def _spaced_steps(self, steps: int) -> np.ndarray:
        """Training steps by the family's convention: rounded, with one step more than asked and the last dropped."""
        config, total = self.config, self.config.num_train_timesteps
        with np.errstate(divide="ignore"):
            clipped = np.searchsorted(-self._table.log_kappa[::-1], config.get("lambda_min_clipped", -np.inf))
        spacing, last = config.timestep_spacing, int(total - clipped)
        return grid.spaced(spacing, steps, total, config.steps_offset, last=last, extra=1).round()

    def _steps_of(self, levels: np.ndarray, rounded: bool) -> np.ndarray:
        """The training steps of converted levels; rounded ones unless the schedule is the cosine."""
        t = noise.sigma_to_t(levels, self._table.log_kappa)
        return t.round() if rounded and self.config.beta_schedule != "squaredcos_cap_v2" else t

    def _predict(self, i: int, sample: torch.Tensor, output: torch.Tensor, *, data: bool) -> torch.Tensor:
        """x̂0 (``data``) or ε̂ at step ``i``, within the limits that the configuration sets to x̂0."""
        plan = self._run.plan
        key = "prediction", i
        if key not in plan.memo:
            level, kind = plan.levels[i], self.config.prediction_type
            plan.memo[key] = clean(kind, *level), eps(kind, *level), noise_from_clean(*level)
        to_clean, to_noise, from_clean = plan.memo[key]
        if not data and not self._limits.active:
            return to_noise.of(sample, output)
        x0 = self._limits.apply(to_clean.of(sample, output))
        return x0 if data else from_clean.of(sample, x0)
