"""Text to image with a pose, through a ControlNet; the same seed gives the same picture.

python examples/pose_to_image.py [REPOSITORY] [CONTROLNET, such as lllyasviel/control_v11p_sd15_openpose]
"""

import torch

from calotype import AutoPipelineForText2Image, ControlNetModel
from calotype.annotators import pose
from tiny import DEVICE, DTYPE, SIZE, checkpoint, person

repository, control = checkpoint("stable-diffusion"), checkpoint("controlnet", argument=2)
controlnet = ControlNetModel.from_pretrained(control, torch_dtype=DTYPE, variant="fp16")
pipeline = AutoPipelineForText2Image.from_pretrained(
    repository, controlnet=controlnet, torch_dtype=DTYPE, variant="fp16"
).to(DEVICE)
generator = torch.Generator(DEVICE).manual_seed(31)

image = pipeline(
    "an astronaut who waves",
    image=pose([person()], (SIZE, SIZE)),
    generator=generator,
    num_inference_steps=10,
).images[0]
image.save("pose_to_image.png")
