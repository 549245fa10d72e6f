"""A pipeline's call: the parts in the order in which the reference draws its random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.images import check_finite, present, to_unit
from calotype.diffusion.inputs import Callbacks, Noise, Output, Size, Steps
from calotype.diffusion.loop import State, denoise
from calotype.diffusion.timesteps import set_timesteps, step_arguments
from calotype.pipelines.running import Running, observer
from calotype.pipelines.signature import EARLIER_CALLBACK


@torch.no_grad()
def generate(pipe: Any, arguments: Mapping[str, Any], output_class: type) -> Any:
    """Run ``pipe`` with the bound arguments of its call; raises ``InputError`` before anything is allocated."""
    family = pipe.bound_family()
    steps, noise = Steps.of(arguments), Noise.of(arguments)
    callbacks, output = Callbacks.of(arguments), Output.of(arguments)
    subject = family.subject(arguments)
    height, width = Size.of(arguments).checked(family.default_size, family.multiple, subject.pictures)
    noise.check_count(subject.pictures)
    callbacks.check_names(family.tensor_names)
    guidance = family.guidance(arguments)
    device = pipe._execution_device
    if device.type == "meta":
        raise InputError("The pipeline's models are on the meta device and hold no values; load them first.")

    conditions = family.encode(subject, arguments, guidance, device)
    scheduler = family.scheduler
    timesteps = set_timesteps(scheduler, steps, device)
    shape = family.latent_shape(subject.pictures, height, width)
    latents = pipe.task.start(noise, shape, scheduler, device, family.dtype)

    custom = steps.timesteps is not None or steps.sigmas is not None
    count = len(timesteps) if custom else steps.num_inference_steps
    earlier = {name: arguments[name] for name in EARLIER_CALLBACK if name in arguments}
    with (
        pipe.running(Running(pipe, family, arguments, len(timesteps))) as running,
        pipe.progress_bar(total=count) as bar,
    ):
        state = denoise(
            State(latents, conditions, guidance),
            timesteps,
            scheduler=scheduler,
            predict=family.predict,
            step_arguments=step_arguments(scheduler, steps, noise),
            observe=observer(running, callbacks, earlier, count, scheduler.order, bar.update),
        )
    latents = check_finite(state.latents, "The denoised latents")
    if output.output_type == "latent":
        images, flags = latents, None
    else:
        decoded = check_finite(family.decode(latents, noise.generator), "The decoded pictures")
        images, flags = family.screen(to_unit(decoded))
        images = present(images, output.output_type or "pil")
    fields = output_class.__dataclass_fields__  # type: ignore[attr-defined]
    result = output_class(images, flags) if len(fields) > 1 else output_class(images)
    return result if output.return_dict else result.to_tuple()
