"""A picture to a picture that keeps its depth, which the checkpoint estimates by itself.

python examples/depth_to_image.py [REPOSITORY, such as stabilityai/stable-diffusion-2-depth]
"""

from calotype import StableDiffusionDepth2ImgPipeline
from calotype.utils import make_image_grid
from tiny import DEVICE, DTYPE, checkpoint, photo

repository = checkpoint("stable-diffusion-depth")
pipeline = StableDiffusionDepth2ImgPipeline.from_pretrained(
    repository, torch_dtype=DTYPE, use_safetensors=True
)
pipeline = pipeline.to(DEVICE)

init_image = photo()
image = pipeline(
    prompt="a castle at sunset",
    image=init_image,
    negative_prompt="blurry, low quality",
    strength=0.7,
    num_inference_steps=10,
).images[0]
make_image_grid([init_image, image], rows=1, cols=2).save("depth_to_image.png")
