"""Text to image with SDXL: the same program, another repository.

python examples/text_to_image_xl.py [REPOSITORY, such as stabilityai/stable-diffusion-xl-base-1.0]
"""

from calotype import AutoPipelineForText2Image
from tiny import DEVICE, DTYPE, checkpoint

repository = checkpoint("stable-diffusion-xl")
pipeline = AutoPipelineForText2Image.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16")
pipeline = pipeline.to(DEVICE)

image = pipeline("an astronaut in a forest, detailed, 8k", num_inference_steps=10).images[0]
image.save("text_to_image_xl.png")
