"""Any task with a model that was distilled to few steps (latent consistency models, arXiv:2310.04378)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.core.signatures import argument_names
from calotype.diffusion.guidance import Guidance, Unguided
from calotype.diffusion.inputs import Distilled
from calotype.diffusion.tasks.task import Path, Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State


@dataclass(frozen=True)
class FewSteps(Task):
    """``task`` along a few of the teacher's steps, which the scheduler chooses; the last step's x̂0 is the picture."""

    task: Task

    tensor_names: ClassVar[tuple[str, ...]] = ("denoised", "w_embedding")

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """As the task; refuse a scheduler that does not know the teacher's steps."""
        self.task.check(family, arguments)
        unet: Any = getattr(family, "unet", None)
        if unet is not None and unet.config.time_cond_proj_dim is None:
            raise InputError(
                "The denoiser is not told the guidance scale (its configuration has no time_cond_proj_dim), so it is "
                "no latent consistency model; use the family's usual pipeline with LCMScheduler."
            )
        if "original_inference_steps" not in argument_names(family.scheduler.set_timesteps):
            raise InputError(
                f"A model of few steps needs a scheduler for it, such as LCMScheduler, not "
                f"{type(family.scheduler).__name__}."
            )

    def beside(self, family: Family) -> tuple[int, ...]:
        """As the task."""
        return self.task.beside(family)

    def guidance(self, family: Family, arguments: Mapping[str, Any]) -> Guidance:
        """One prediction a step: the model is told the scale."""
        return Unguided()

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """As the task."""
        return self.task.size(family, arguments, pictures)

    def schedule(self, call: Call) -> Mapping[str, Any]:
        """The teacher's steps, and how many of them to leave out at the start."""
        original = Distilled.of(call.arguments).original_inference_steps
        strength = {k: v for k, v in call.arguments.items() if k == "strength"}
        return strength if original is None else {**strength, "original_inference_steps": original}

    def start(self, call: Call, path: Path) -> Start:
        """As the task."""
        return self.task.start(call, path)

    def result(self, state: State) -> torch.Tensor:
        """What the last step foresaw."""
        return state.latents if state.denoised is None else state.denoised

    def finish(self, call: Call, images: Any, output_type: str) -> Any:
        """As the task."""
        return self.task.finish(call, images, output_type)
