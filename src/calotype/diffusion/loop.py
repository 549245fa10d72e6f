"""The denoising loop: the only place where a model and a scheduler meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch

from calotype.diffusion.conditions import Conditions
from calotype.diffusion.guidance import Guidance


@dataclass(frozen=True)
class State:
    """What a step reads and hands on."""

    latents: torch.Tensor
    conditions: Conditions
    guidance: Guidance
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the task keeps from step to step, by name."""
    denoised: torch.Tensor | None = None
    """The clean latents that the last step foresaw, where the scheduler tells."""
    stopped: bool = False


Predict = Callable[[int, torch.Tensor, torch.Tensor, State], torch.Tensor]
"""(step, stacked and scaled latents, timestep, state) -> the branches' predictions, stacked."""

Observe = Callable[[int, torch.Tensor, State], State]
"""(step, timestep, state) -> the state that the next step starts from."""


class Solver(Protocol):
    """What the loop asks of a scheduler."""

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor: ...

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **arguments: Any
    ) -> tuple[torch.Tensor, ...]: ...


def unobserved(index: int, timestep: torch.Tensor, state: State) -> State:
    """The observer that changes nothing."""
    return state


def denoise(
    state: State,
    timesteps: torch.Tensor,
    *,
    scheduler: Solver,
    predict: Predict,
    step_arguments: Mapping[str, Any] = MappingProxyType({}),
    observe: Observe = unobserved,
) -> State:
    """Take the latents from the first timestep to the end, one prediction and one solver step a timestep.

    ``observe`` sees the state after each step and may replace any part of it; a state that it marks as stopped ends
    the loop early.
    """
    for index, timestep in enumerate(timesteps):
        branches = len(state.guidance.branches)
        stacked = state.latents if branches == 1 else torch.cat([state.latents] * branches)
        stacked = scheduler.scale_model_input(stacked, timestep)
        prediction = state.guidance.combine(predict(index, stacked, timestep, state).chunk(branches))
        latents, *more = scheduler.step(
            prediction, timestep, state.latents, return_dict=False, **step_arguments
        )
        state = replace(state, latents=latents, denoised=more[0] if more else None)
        state = observe(index, timestep, state)
        if state.stopped:
            break
    return state
