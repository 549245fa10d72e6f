"""A call in progress: what a callback sees as the pipeline, and how it may change the rest of the run.

The pipeline itself holds nothing of a call, so two threads may use one pipeline; a callback gets this view of it,
whose guidance scale and interruption belong to its own call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from calotype.acceleration.pipeline import look_again
from calotype.core.errors import InputError
from calotype.diffusion.guidance import Guidance
from calotype.diffusion.inputs import SCALES, Callbacks
from calotype.diffusion.loop import State
from calotype.diffusion.parts import Parts
from calotype.diffusion.tasks.task import Reimpose

_OF_THE_CALL = (
    *SCALES, "clip_skip", "cross_attention_kwargs", "eta",
)  # fmt: skip


class Running:
    """One call of a pipeline. Everything that is not of the call is read from and written to the pipeline."""

    def __init__(self, pipe: Any, parts: Parts, arguments: Mapping[str, Any], num_timesteps: int) -> None:
        own = self.__dict__
        own["_pipe"] = pipe
        own["_parts"] = parts
        own["_arguments"] = dict(arguments)
        own["num_timesteps"] = num_timesteps
        own["_interrupt"] = False
        own["_image_scales"] = None

    def __getattr__(self, name: str) -> Any:
        key = name.removeprefix("_")
        if key in _OF_THE_CALL and key in self._arguments:
            self._check(key)
            return self._arguments[key]
        return getattr(self._pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        key = name.removeprefix("_")
        if key == "guidance" or (key in _OF_THE_CALL and key in self._arguments):
            self._check(key)
            self._arguments[key] = value
        elif name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self._pipe, name, value)

    def _check(self, name: str) -> None:
        """Refuse a single scale where it says nothing, since the whole guidance was given."""
        if name in SCALES and self._arguments.get("guidance") is not None:
            raise InputError(f"This call was given guidance as a value, not {name}; see pipe.guidance.")

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """How strongly IP-Adapters act in the rest of this call; see the pipeline's own."""
        from calotype.adapters import ip_adapter

        self.__dict__["_image_scales"] = ip_adapter.scales(self._pipe.unet, scale)

    @property
    def interrupt(self) -> bool:
        """Whether the run is to end after the current step."""
        return self._interrupt

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether a step predicts with and without the prompt."""
        return "uncond" in self.guidance.branches

    @property
    def guidance(self) -> Guidance:
        """The guidance that the call's arguments, as they are now, ask for; a callback may set another one."""
        return self._parts.guidance(self._arguments)


def rescaled(conditions: Any, scales: Any) -> Any:
    """The conditions with these scales for the pictures of IP-Adapters; None leaves them as they are."""
    if scales is None:
        return conditions
    arguments = conditions.cross_attention_kwargs
    prompts = arguments["image_prompts"]._replace(scales=scales)
    return conditions.replaced({"cross_attention_kwargs": {**arguments, "image_prompts": prompts}})


def observer(
    running: Running,
    callbacks: Callbacks,
    earlier: Mapping[str, Any],
    steps: int,
    order: int,
    advance: Callable[[], Any],
    reimpose: Reimpose | None = None,
) -> Callable[[int, torch.Tensor, State], State]:
    """What the loop calls after each step: the task, the user's callbacks, then the progress bar.

    A solver of ``order`` 2 predicts twice a step, and some solvers predict more often at the start; the bar counts
    the ``steps`` that were asked for.
    """
    function = callbacks.callback_on_step_end
    wanted = callbacks.callback_on_step_end_tensor_inputs or ()
    total = running.num_timesteps
    plain = earlier.get("callback")
    every = earlier.get("callback_steps", 1) or 1
    warm_up = total - steps * order

    def observe(index: int, timestep: torch.Tensor, state: State) -> State:
        if reimpose is not None:
            state = replace(state, latents=reimpose(index, state))
        if function is not None:
            offered = {"latents": state.latents, **state.conditions.tensors(), **state.tensors}
            if state.denoised is not None:
                offered["denoised"] = state.denoised
            given = {name: offered.get(name) for name in wanted}
            returned = function(running, index, timestep, given)
            look_again(running._parts.family)
            if returned:
                state = replace(
                    state,
                    latents=returned.get("latents", state.latents),
                    conditions=state.conditions.replaced(returned),
                    guidance=running.guidance,
                    denoised=returned.get("denoised", state.denoised),
                    tensors={name: returned.get(name, value) for name, value in state.tensors.items()},
                )
            state = replace(state, conditions=rescaled(state.conditions, running._image_scales))
        if index == total - 1 or (index + 1 > warm_up and (index + 1) % order == 0):
            advance()
            if plain is not None and index % every == 0:
                plain(index // order, timestep, state.latents)
                look_again(running._parts.family)
        return replace(state, stopped=running.interrupt)

    return observe
