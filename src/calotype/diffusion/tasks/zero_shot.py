"""Text-to-video with a model of pictures (Text2Video-Zero, arXiv:2303.13439)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from calotype.core.errors import InputError
from calotype.core.random import randn_tensor
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.inputs import Drift, Size, Steps
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.task import Go, Path, Start, Task
from calotype.nn.cross_frame import CrossFrame

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State

FIELD = 512
"""The side of the field that shifts are given in."""


@dataclass(frozen=True)
class ZeroShot(Task):
    """One picture for a part of the way; then its shifted copies beside it, which all attend to it."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse several videos, a way too short, and solvers that must not be left in the middle of a step."""
        drift, steps = Drift.of(arguments), Steps.of(arguments).num_inference_steps
        repeats = arguments.get("num_videos_per_prompt", 1)
        if (count := family.subject(arguments).pictures * (1 if repeats is None else repeats)) != 1:
            raise InputError(
                f"This pipeline makes one video a call, not {count}: give one prompt, and call it again."
            )
        if drift.t1 >= steps:
            raise InputError(
                f"t1={drift.t1} is not below num_inference_steps={steps}; it counts steps from the end, so take more "
                f"of them, or lower t0 and t1 with their number."
            )
        if family.scheduler.order != 1:
            raise InputError(
                f"{type(family.scheduler).__name__} predicts {family.scheduler.order} times a step, between which the "
                f"frames cannot part; use DDIMScheduler or another that predicts once."
            )

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """As asked for, or what the model was trained for; each frame counts as a picture."""
        frames = pictures * len(Drift.of(arguments).numbers)
        return Size.of(arguments).checked(family.default_size, family.multiple, frames)

    def start(self, call: Call, path: Path) -> Start:
        """Draw the noise of one picture, or take what the caller gives."""
        return Start(initial_noise(call) * call.scheduler.init_noise_sigma)

    def walk(self, call: Call, path: Path, state: State, go: Go) -> State:
        """To t1, on to t0 and, shifted and noised, back to t1; from there all frames to the end."""
        drift = Drift.of(call.arguments)
        frames = len(drift.numbers)
        parting, shifting = (path.whole - 1 - t for t in (drift.t1, drift.t0))
        if shifting >= len(path.timesteps):
            raise InputError(
                f"denoising_end ends the way before the step {shifting} in which the frames are shifted; end it later."
            )
        extra = path.whole - call.steps.num_inference_steps  # some solvers predict more often at the start
        first = go(state, Path(path.timesteps[:parting], parting - extra))
        solver = copy.deepcopy(call.family.solver)
        there = go(first, Path(path.timesteps[parting:shifting], shifting - parting, before=parting))
        latents = first.latents
        if frames > 1:
            shifted = shift(there.latents, drift)
            drawn = randn_tensor(shifted.shape, call.noise.generator, shifted.device, shifted.dtype)
            levels = path.timesteps[shifting], path.timesteps[parting]
            latents = torch.cat([latents, noised(call.scheduler, shifted, drawn, *levels)])
        rest = path.timesteps[parting:]
        state = replace(
            there, latents=latents, conditions=for_frames(state.conditions, frames), denoised=None
        )
        return go(state, Path(rest, len(rest), before=parting), solver)


def for_frames(conditions: Conditions, frames: int) -> Conditions:
    """What one picture was told, for each of the frames, and that they attend to the first of them."""
    rows = {name: repeated(tensor, frames) for name, tensor in conditions.tensors().items()}
    given = getattr(conditions, "cross_attention_kwargs", None) or {}
    return conditions.replaced(
        {**rows, "cross_attention_kwargs": {**given, "cross_frame": CrossFrame(frames)}}
    )


def shift(latents: torch.Tensor, drift: Drift) -> torch.Tensor:
    """A picture's latents (1, channels, height, width) as all frames but the first see them, mirrored at the edges."""
    height, width = latents.shape[2:]
    numbers = drift.numbers[1:]
    x = _positions(width, drift.motion_field_strength_x, numbers).to(latents.device)
    y = _positions(height, drift.motion_field_strength_y, numbers).to(latents.device)
    grid = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    each = latents.float().expand(len(numbers), -1, -1, -1)
    moved = F.grid_sample(each, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return moved.to(latents.dtype)


def _positions(side: int, strength: float, numbers: Sequence[int]) -> torch.Tensor:
    """Where along a side each frame's latents come from, (frames, side), as ``grid_sample`` counts: -1 to 1."""
    middles = ((torch.arange(side) + 0.5) * (FIELD / side) - 0.5).clamp(0, FIELD - 1)
    shifts = strength * torch.tensor(numbers, dtype=torch.float32)
    return (middles + shifts[:, None]) / FIELD * 2 - 1


def noised(
    scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor
) -> torch.Tensor:
    """Latents at the level of the timestep ``lower`` as they are at ``upper``, with more ``noise``.

    x' = a·x + √(s'² - a²·s²)·ε with a = α'/α, for levels α·x0 + s·ε. Where α² + s² is 1 that is √a²·x + √(1 - a²)·ε,
    with a² taken from the table as the product of 1 - β between the two, the lower one included (as the paper's code
    counts).
    """
    (alpha, s), (alpha_up, s_up) = (_level(scheduler, timestep) for timestep in (lower, upper))
    if abs(alpha_up**2 + s_up**2 - 1) < 1e-4 and abs(alpha**2 + s**2 - 1) < 1e-4:
        kept = float(scheduler.alphas[int(lower) : int(upper)].double().prod())
        return kept**0.5 * latents + (1 - kept) ** 0.5 * noise
    kept = alpha_up / alpha
    return kept * latents + (s_up**2 - (kept * s) ** 2) ** 0.5 * noise


def _level(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
    """What clean latents and noise are multiplied with at a timestep of the schedule."""
    at = timestep.reshape(1)
    one = torch.ones(1, device=at.device)
    nothing = torch.zeros_like(one)
    return float(scheduler.add_noise(one, nothing, at)), float(scheduler.add_noise(nothing, one, at))
