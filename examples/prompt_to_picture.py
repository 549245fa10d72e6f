"""A prompt becomes a picture.

python examples/prompt_to_picture.py [MODEL]
"""

import sys

import torch

import calotype

pipe = calotype.load(sys.argv[1] if len(sys.argv) > 1 else "pocket")
generator = torch.Generator("cpu").manual_seed(7)
image = pipe("a big red ball on grass at sunset", num_inference_steps=20, generator=generator).images[0]
image.save("ball.png")
