"""A picture in one step with SDXL Turbo, which needs no guidance.

python examples/turbo.py [REPOSITORY, such as stabilityai/sdxl-turbo]
"""

from calotype import AutoPipelineForText2Image
from tiny import DEVICE, DTYPE, checkpoint

repository = checkpoint("sdxl-turbo")
pipeline = AutoPipelineForText2Image.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16")
pipeline = pipeline.to(DEVICE)

image = pipeline("a photo of a cat in a forest", guidance_scale=0.0, num_inference_steps=1).images[0]
image.save("turbo.png")
