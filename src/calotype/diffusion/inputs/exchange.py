"""What is told between the steps and handed back at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument

StepCallback = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Callbacks(Inputs):
    """What is called between steps."""

    callback_on_step_end: StepCallback | None = argument(
        None,
        "Called as f(pipe, step, timestep, tensors) after each step; the tensors that it returns replace the loop's.",
    )
    callback_on_step_end_tensor_inputs: Sequence[str] | None = argument(
        ("latents",), "The names of the tensors that the callback wants to see."
    )

    def check_names(self, allowed: Sequence[str]) -> None:
        """Refuse names of tensors that this pipeline does not offer."""
        unknown = [name for name in self.callback_on_step_end_tensor_inputs or () if name not in allowed]
        if unknown:
            raise InputError(
                f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}; this pipeline offers "
                f"{', '.join(allowed)}."
            )


@dataclass(frozen=True)
class EarlierCallback(Inputs):
    """The callback of the first releases, where it is an argument of its own."""

    callback: Callable[[int, int, torch.Tensor], None] | None = argument(
        None, "Called as f(step, timestep, latents) every callback_steps steps."
    )
    callback_steps: int = argument(1, "How many steps lie between two calls of callback.")


EARLIER_CALLBACK = ("callback", "callback_steps")
"""The arguments of :class:`EarlierCallback`; some pipelines accept them through ``**kwargs`` alone."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Output(Inputs):
    """What comes back."""

    output_type: str | None = argument(
        "pil", "'pil', 'np' (batch, height, width, 3), 'pt' (batch, 3, height, width) or 'latent'."
    )
    return_dict: bool = argument(True, "Whether to return an output object; otherwise a tuple.")

    def __post_init__(self) -> None:
        if self.output_type not in OUTPUT_TYPES:
            raise InputError(
                f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {self.output_type!r}."
            )
