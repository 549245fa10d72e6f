"""What a scheduler's ``step`` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from calotype.core.outputs import BaseOutput


@dataclass
class SchedulerOutput(BaseOutput):
    """``prev_sample``: the sample at the next, less noisy level; what the next network call takes."""

    prev_sample: Tensor


@dataclass
class PredictionSchedulerOutput(BaseOutput):
    """``prev_sample`` and the clean sample predicted at this step, ``pred_original_sample``."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
