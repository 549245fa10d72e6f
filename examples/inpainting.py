"""New content where a mask is white, with a checkpoint that was made for it.

python examples/inpainting.py [REPOSITORY, such as stable-diffusion-v1-5/stable-diffusion-inpainting]
"""

import torch

from calotype import AutoPipelineForInpainting
from calotype.utils import make_image_grid
from tiny import DTYPE, checkpoint, mask, photo

repository = checkpoint("stable-diffusion-inpainting")
pipeline = AutoPipelineForInpainting.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16")
pipeline.enable_model_cpu_offload()

init_image, mask_image = photo(), mask()
image = pipeline(
    prompt="a cat on the grass, detailed",
    negative_prompt="blurry, low quality",
    image=init_image,
    mask_image=mask_image,
    generator=torch.Generator("cpu").manual_seed(92),
    num_inference_steps=10,
).images[0]
make_image_grid([init_image, mask_image, image], rows=1, cols=3).save("inpainting.png")
