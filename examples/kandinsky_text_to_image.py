"""Text to image with Kandinsky 2.2: the decoder's model card names the prior, and one call runs both.

python examples/kandinsky_text_to_image.py [REPOSITORY, such as kandinsky-community/kandinsky-2-2-decoder]
"""

import torch

from calotype import AutoPipelineForText2Image
from tiny import DTYPE, checkpoint, side

repository = checkpoint("kandinsky")
pipeline = AutoPipelineForText2Image.from_pretrained(repository, torch_dtype=DTYPE)
pipeline.enable_model_cpu_offload()

image = pipeline(
    prompt="an astronaut in a forest, detailed photo",
    negative_prompt="blurry, low quality",
    prior_guidance_scale=1.0,
    prior_num_inference_steps=10,
    num_inference_steps=10,
    height=side(768),
    width=side(768),
    generator=torch.Generator("cpu").manual_seed(31),
).images[0]
image.save("kandinsky_text_to_image.png")
