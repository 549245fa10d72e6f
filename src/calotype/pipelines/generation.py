"""A pipeline's call: the parts in the order in which the reference draws its random numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from calotype.acceleration.pipeline import begin_step
from calotype.adapters.strength import at_strength
from calotype.core.errors import InputError
from calotype.diffusion.call import Call
from calotype.diffusion.controls.control import Residuals, Steer, together
from calotype.diffusion.family import Family
from calotype.diffusion.fitting import Fitting
from calotype.diffusion.guidance import PERTURBED, Guidance
from calotype.diffusion.images import NonFiniteError, check_finite, present, to_unit
from calotype.diffusion.inputs import EARLIER_CALLBACK, Attention, Callbacks, Frames, Noise, Output, Span
from calotype.diffusion.loop import Predict, State, denoise
from calotype.diffusion.parts import Parts
from calotype.diffusion.tasks.task import Path, Start, Task
from calotype.diffusion.timesteps import NoiseLevels, check_seeded, set_timesteps, step_arguments, until_end
from calotype.diffusion.watch import Watch
from calotype.nn.perturbation import Perturbation, self_attention
from calotype.nn.shared_attention import batch_of
from calotype.pipelines.running import Running, observer

logger = logging.getLogger(__name__)


@torch.no_grad()
def generate(pipe: Any, parts: Parts, arguments: Mapping[str, Any], output_class: type) -> Any:
    """Run ``parts`` of ``pipe`` with the bound arguments of its call; raises ``InputError`` before any computation."""
    output = Output.of(arguments)
    if (acceleration := pipe.acceleration) is not None:
        parts = parts.with_families(acceleration.bound)
    chain = []
    for one in (*parts.before, parts):
        mine = {k: v for k, v in arguments.items() if k != "guidance" or one is parts.guided}
        call = checked(one, one.arguments(mine), pipe._execution_device)
        arguments = {**arguments, "generator": call.arguments.get("generator")}
        Callbacks.of(call.arguments).check_names(one.tensor_names)
        chain.append((one, call))

    found: dict[str, torch.Tensor] = {}
    stopped = False
    for one, call in chain[:-1]:
        state, watch = sampled(pipe, one, call.told(found), stopped)
        try:
            found[one.gives] = call.family.decode(one.task.result(state), call.noise.generator)
        finally:
            watch.check()
        stopped = state.stopped
    call = chain[-1][1].told(found)
    state, watch = sampled(pipe, parts, call, stopped)
    images, flags = decoded(call, parts.task, parts.task.result(state), watch, output.output_type or "pil")
    images = parts.task.finish(call, images, output.output_type or "pil")
    fields = output_class.__dataclass_fields__  # type: ignore[attr-defined]
    result = output_class(images, flags) if len(fields) > 1 else output_class(images)
    return result if output.return_dict else result.to_tuple()


def sampled(pipe: Any, parts: Parts, call: Call, stopped: bool = False) -> tuple[State, Watch]:
    """The state that the call's denoising ends in; after one step if what comes before was ``stopped``.

    Whether its latents are finite is to be asked of the watch, when the device has been given what is made of them.
    """
    arguments, task, rounds = call.arguments, parts.task, call.family.rounds
    with at_strength(Attention.of(arguments).lora_scale):
        conditions = call.family.encode(call)
    path = task.path(call, set_timesteps(call.scheduler, task.steps(call), call.device, task.schedule(call)))
    start = task.start(call, path)
    path = until_end(call.scheduler, path, Span.of(arguments))
    steerings = [control.prepare(call, path, task) for control in parts.controls]
    tensors = {**start.tensors, **{k: v for steering in steerings for k, v in steering.tensors.items()}}
    begun = State(start.latents, conditions.replaced(start.conditions), call.guidance, tensors)
    predict = predictor(call, start, together(steerings))
    earlier = {name: arguments[name] for name in EARLIER_CALLBACK if name in arguments}
    own = call.family.solver
    watch = Watch()

    def go(state: State, path: Path, solver: Any = None, *, whole: int) -> State:
        with (
            pipe.running(Running(pipe, parts, arguments, len(path.timesteps))) as running,
            pipe.progress_bar(total=path.steps) as bar,
        ):
            running._interrupt = stopped or state.stopped
            observe = observer(
                running,
                Callbacks.of(arguments),
                earlier,
                path.steps,
                call.scheduler.order,
                bar.update,
                start.reimpose,
            )
            state = denoise(
                state,
                path.timesteps,
                scheduler=own if solver is None else solver,
                predict=predict,
                step_arguments=step_arguments(call.scheduler, call.steps, call.noise),
                observe=watch.over(observe),
                before=path.before,
                whole=whole,
                noise=NoiseLevels(call.scheduler, path.timesteps),
            )
        watch.ended(state.latents)
        return state

    state = begun
    for number in range(rounds.count):
        way, latents = rounds.begin(number, call, task, path, start, state.latents)
        going = partial(go, whole=len(way.timesteps))
        state = task.walk(call, way, replace(begun, latents=latents), going)
        if state.stopped:
            break
    return state, watch


def checked(parts: Parts, arguments: Mapping[str, Any], device: torch.device) -> Call:
    """The call, after every check that needs no computation."""
    family, task = parts.family, parts.task
    if device.type == "meta":
        raise InputError("The pipeline's models are on the meta device and hold no values; load them first.")
    subject = family.subject(arguments)
    family.check(arguments)
    _check_channels(family, task)
    task.check(family, arguments)
    for control in parts.controls:
        control.check(family, arguments)
    height, width = task.size(family, arguments, subject.pictures * Frames.of(arguments).pictures)
    rows = family.rows(arguments)
    Noise.of(arguments).check_count(subject.pictures // rows, rows)
    arguments = Noise.settled(arguments, subject.pictures // rows)
    guidance = parts.guidance(arguments)
    perturbed = perturbed_layers(family, guidance)
    call = Call(family, arguments, subject, guidance, height, width, device, perturbed)
    check_seeded(call.scheduler, call.noise)
    return call


def _check_channels(family: Family, task: Task) -> None:
    """Refuse a denoiser that reads more or less beside the latents than the task puts there."""
    fitting = [family.latent_channels + beside for beside in task.beside(family)]
    if family.input_channels not in fitting:
        raise InputError(
            f"The denoiser reads {family.input_channels} channels; this task needs one that reads "
            f"{' or '.join(map(str, fitting))}, of which {family.latent_channels} are the latents'."
        )


def perturbed_layers(family: Any, guidance: Guidance) -> frozenset[torch.nn.Module]:
    """The layers of the denoiser that a guidance perturbs; ``InputError`` for a name that there is none of."""
    names = guidance.perturbed_layers
    return self_attention(family.unet, names) if names else frozenset()


def predictor(call: Call, start: Start, steer: Steer | None) -> Predict:
    """The family's prediction for the latents, with what the task puts beside them and the controls add."""

    fitting = Fitting()

    def predict(index: int, latents: torch.Tensor, timestep: torch.Tensor, state: State) -> torch.Tensor:
        residuals = Residuals() if steer is None else steer(index, latents, timestep, state)
        if start.channels:
            beside = [state.tensors[name] for name in start.channels]
            beside = [tensor.repeat(len(latents) // len(tensor), 1, 1, 1) for tensor in beside]
            latents = torch.cat([latents, *beside], dim=1)
        branches, rows = state.guidance.branches, len(latents)
        begin_step(call.family, index)

        def compute(latents: torch.Tensor, told: tuple[Any, Residuals]) -> torch.Tensor:
            conditions, beside = told
            if PERTURBED in branches:
                conditions = perturbed(conditions, Perturbation(call.perturbed, len(branches)))
            with batch_of(len(latents) // len(branches), whole=len(latents) == rows):
                return call.family.predict(latents, timestep, conditions, beside)

        return fitting.predict(compute, latents, (state.conditions, residuals), len(branches))

    return predict


def perturbed(conditions: Any, perturbation: Perturbation) -> Any:
    """Conditions that tell the denoiser's attention layers of a perturbation."""
    more = {**(conditions.cross_attention_kwargs or {}), "perturbation": perturbation}
    return conditions.replaced({"cross_attention_kwargs": more})


def pictures(call: Call, task: Task, latents: torch.Tensor, watch: Watch) -> torch.Tensor:
    """Pictures in [-1, 1]; a decoder that overflows in half precision decodes once more in float32."""
    what = "The decoded pictures"
    try:
        pixels = task.decode(call, latents)
    finally:  # latents that are not finite are to blame for whatever comes of them
        watch.check()
    try:
        return check_finite(pixels, what)
    except NonFiniteError:
        if (precise := call.family.precise()) is None:
            raise
    logger.warning(
        "The decoded pictures overflowed in half precision and are decoded again in float32; to save that, load the "
        "autoencoder in float32 or bfloat16."
    )
    return check_finite(task.decode(replace(call, family=precise), latents), what)


def decoded(
    call: Call, task: Task, latents: torch.Tensor, watch: Watch, output_type: str
) -> tuple[Any, list[bool] | None]:
    """Pictures in the form asked for, and which of them the safety check blanked."""
    if output_type == "latent":
        watch.check()
        return latents, None
    pixels = pictures(call, task, latents, watch)
    images, flags = call.family.screen(to_unit(pixels))
    return present(images, output_type), flags
