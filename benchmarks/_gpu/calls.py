"""The calls from a prompt to pictures that are timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks._gpu.sizes import Sizes

PROMPTS = (
    "a red ball on the grass at night",
    "a blue cube on sand by day",
    "a big green cone left of a small red cube",
)


@dataclass(frozen=True)
class Call:
    """A pipeline's call: what it is named, its models and scheduler, and what it is given."""

    what: str
    xl: bool
    scheduler: str
    side: int
    steps: int
    arguments: dict[str, Any] = field(default_factory=dict)
    pictures: int = 1
    controlled: bool = False
    aim: float | None = None
    """Milliseconds."""
    needs: float = 20
    """Seconds that it takes to measure it in both libraries."""

    def given(self, sizes: Sizes) -> dict[str, Any]:
        """All arguments but the prompt, the generator and the kind of result."""
        side = sizes.side(self.side)
        more = {"image": control_picture(side)} if self.controlled else {}
        return {
            "height": side, "width": side, "num_inference_steps": sizes.steps(self.steps),
            "num_images_per_prompt": self.pictures, **more, **self.arguments,
        }  # fmt: skip


UNGUIDED = {"guidance_scale": 0.0}
CALLS = {
    "sd15": Call("SD 1.5, 50 steps, 512", False, "pndm", 512, 50, aim=320, needs=25),
    "sd15x8": Call("SD 1.5, 50 steps, 8 x 512", False, "pndm", 512, 50, pictures=8, needs=35),
    "controlnet": Call("SD 1.5, ControlNet, 20 steps, 512", False, "pndm", 512, 20, controlled=True),
    "one": Call("SDXL Turbo, 1 step, 512", True, "turbo", 512, 1, UNGUIDED, aim=20, needs=15),
    "four": Call("SDXL Turbo, 4 steps, 512", True, "turbo", 512, 4, UNGUIDED, needs=10),
    "sdxl": Call("SDXL, 30 steps, 1024", True, "euler", 1024, 30, aim=850, needs=40),
}


def control_picture(side: int) -> Any:
    """Lines of a drawing in white on black, as ControlNets for edges read them."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(picture)
    for part in (0.2, 0.3, 0.45):
        box = [side * (0.5 - part), side * (0.5 - part), side * (0.5 + part), side * (0.5 + part)]
        draw.ellipse(box, outline="white", width=2)
        draw.rectangle(box, outline="white", width=2)
    return picture


def make(
    pipe: Any, call: Call, given: dict[str, Any], at: int = 0, form: str = "pt", seed: int = 0, **more: Any
) -> Any:
    """The pictures of one of the prompts."""
    generator = more.pop("generator", None)
    if generator is None:
        generator = torch.Generator(pipe.unet.device).manual_seed(seed)
    prompt = PROMPTS[at % len(PROMPTS)]
    return pipe(prompt, generator=generator, output_type=form, **{**given, **more}).images
