"""What the model sees while it develops the latent image: each step's latents, decoded.

python examples/watch_the_steps.py [MODEL]
"""

import sys

import torch

import calotype
from calotype.utils import contact_sheet, pt_to_pil

pipe = calotype.load(sys.argv[1] if len(sys.argv) > 1 else "pocket")
frames = []


def look(pipe, step, timestep, tensors):
    latents = tensors["latents"] / pipe.vae.config.scaling_factor
    with torch.no_grad():
        frames.extend(pt_to_pil(pipe.vae.decode(latents).sample))
    return tensors


pipe(
    "a green cone on sand",
    num_inference_steps=12,
    generator=torch.Generator("cpu").manual_seed(7),
    callback_on_step_end=look,
)
contact_sheet(frames, [f"step {n}" for n in range(1, len(frames) + 1)]).save("steps.png")
