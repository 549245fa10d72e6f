"""The denoising loop: the only place where a model and a scheduler meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, only
from calotype.diffusion.guidance import Guidance, Moment


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

    def at(self, moment: Moment, stacked: tuple[str, ...]) -> State:
        """The state with what guides in this step, and of what is ``stacked`` by branches only those that it needs."""
        guidance = self.guidance.at(moment)
        if lacking := [name for name in guidance.branches if name not in stacked]:
            raise InputError(
                f"The guidance now needs the branch {lacking[0]!r}, but the call began with {', '.join(stacked)} "
                f"alone; begin with it, and leave it out of some steps instead."
            )
        pictures = len(self.latents)
        return replace(
            self,
            guidance=guidance,
            conditions=self.conditions.only(guidance.branches, stacked, pictures),
            tensors=only(self.tensors, guidance.branches, of=stacked, pictures=pictures),
        )


Predict = Callable[[int, torch.Tensor, torch.Tensor, State], torch.Tensor]
"""(step, stacked and scaled latents, timestep, state as of this step) -> the branches' predictions, stacked."""

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
    before: int = 0,
    whole: int | None = None,
    noise: Callable[[int], float] | None = None,
) -> State:
    """Take the latents from the first timestep to the end, one prediction and one solver step a timestep.

    ``observe`` sees the state after each step and may replace any part of it; a state that it marks as stopped ends
    the loop early. What the state holds for several branches stays stacked as it is at the start; a step that needs
    fewer of them computes no others. The timesteps may be a part of a way of so many as a ``whole``, with some
    ``before``: guidance and ``predict`` are told the step's number on that. ``noise`` tells a
    guidance that asks the noise level of a step of these.
    """
    prepared = state.guidance.branches
    whole = before + len(timesteps) if whole is None else whole
    for index, timestep in enumerate(timesteps):
        told = None if noise is None else partial(noise, index)
        now = state.at(Moment(before + index, whole, timestep, told), prepared)
        branches = len(now.guidance.branches)
        stacked = state.latents if branches == 1 else torch.cat([state.latents] * branches)
        stacked = scheduler.scale_model_input(stacked, timestep)
        prediction = now.guidance.combine(predict(before + index, stacked, timestep, now).chunk(branches))
        latents, *more = scheduler.step(
            prediction, timestep, state.latents, return_dict=False, **step_arguments
        )
        state = replace(state, latents=latents, denoised=more[0] if more else None)
        state = observe(index, timestep, state)
        if state.stopped:
            break
    return state
