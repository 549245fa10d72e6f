"""Schedulers of distilled models, which are evaluated at steps of the schedule that they were distilled on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.schedulers.checks import exactly_one, step_count
from calotype.schedulers.indexed import IndexedScheduler
from calotype.schedulers.table import TableScheduler


class DistilledScheduler(IndexedScheduler, TableScheduler):
    """Base of LCM and TCD: the same configuration and schedule, ``original_inference_steps`` of the teacher thinned."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        original_inference_steps: int = 50,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._check()
        self._make_table()
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Begin a run of so many steps, or over the descending training steps ``timesteps``.

        With ``strength`` < 1 the run begins in the middle: of the teacher's steps, or of ``timesteps``, only this
        share is used.
        """
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        total = self.config.num_train_timesteps
        if timesteps is not None:
            given = self._given_timesteps(timesteps)
            given = given[len(given) - int(len(given) * strength) :]
            return self._begin_table(given, device, step_count(len(given)))
        steps = step_count(num_inference_steps, total)
        original = original_inference_steps or self.config.original_inference_steps
        if original is None:  # every training step
            original = total
        if original > total:
            raise InputError(f"original_inference_steps={original} is more than the {total} training steps.")
        teacher = np.arange(1, int(original * strength) + 1) * (total // original) - 1
        if steps > len(teacher):
            raise InputError(
                f"num_inference_steps={steps} is more than the {len(teacher)} steps to choose from "
                f"(original_inference_steps={original} times strength={strength}): give at most {len(teacher)}."
            )
        chosen = np.floor(np.linspace(0, len(teacher), steps, endpoint=False)).astype(np.int64)
        return self._begin_table(teacher[::-1][chosen], device, steps)
