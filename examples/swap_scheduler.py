"""Another scheduler in the place of the checkpoint's: one line.

python examples/swap_scheduler.py [REPOSITORY]
"""

import torch

from calotype import DiffusionPipeline, EulerDiscreteScheduler
from tiny import DEVICE, DTYPE, checkpoint

pipeline = DiffusionPipeline.from_pretrained(checkpoint("stable-diffusion"), torch_dtype=DTYPE)
pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
pipeline = pipeline.to(DEVICE)

generator = torch.Generator(DEVICE).manual_seed(0)
image = pipeline("an astronaut in a forest", generator=generator, num_inference_steps=10).images[0]
image.save("swap_scheduler.png")
