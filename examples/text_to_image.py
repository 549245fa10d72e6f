"""Text to image with Stable Diffusion 1.5, or whatever family the repository is of.

python examples/text_to_image.py [REPOSITORY, such as stable-diffusion-v1-5/stable-diffusion-v1-5]
"""

from calotype import AutoPipelineForText2Image
from tiny import DEVICE, DTYPE, checkpoint

repository = checkpoint("stable-diffusion")
pipeline = AutoPipelineForText2Image.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16")
pipeline = pipeline.to(DEVICE)

image = pipeline("an astronaut in a forest, detailed, 8k", num_inference_steps=10).images[0]
image.save("text_to_image.png")
