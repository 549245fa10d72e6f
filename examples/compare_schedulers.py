"""One prompt and one seed with several schedulers and numbers of steps, on one sheet.

python examples/compare_schedulers.py [MODEL]
"""

import sys

import torch

import calotype
from calotype.utils import contact_sheet

SCHEDULERS = (
    calotype.DDIMScheduler,
    calotype.EulerDiscreteScheduler,
    calotype.EulerAncestralDiscreteScheduler,
    calotype.DPMSolverMultistepScheduler,
)
STEPS = (4, 8, 16)

pipe = calotype.load(sys.argv[1] if len(sys.argv) > 1 else "pocket")
images, captions = [], []
for scheduler in SCHEDULERS:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    for steps in STEPS:
        generator = torch.Generator("cpu").manual_seed(7)
        images += pipe("a blue cube on snow", num_inference_steps=steps, generator=generator).images
        captions.append(f"{scheduler.__name__}, {steps} steps")
contact_sheet(images, captions, columns=len(STEPS)).save("schedulers.png")
