"""A picture made better by the SDXL refiner, a little at a time.

python examples/image_to_image_refiner.py [REPOSITORY, such as stabilityai/stable-diffusion-xl-refiner-1.0]
"""

from calotype import AutoPipelineForImage2Image
from calotype.utils import make_image_grid
from tiny import DTYPE, checkpoint, photo

repository = checkpoint("stable-diffusion-xl-refiner")
pipeline = AutoPipelineForImage2Image.from_pretrained(
    repository, torch_dtype=DTYPE, variant="fp16", use_safetensors=True
)
pipeline.enable_model_cpu_offload()
pipeline.enable_xformers_memory_efficient_attention()

init_image = photo()
image = pipeline(
    "a ball at sunset, detailed, 8k", image=init_image, strength=0.5, num_inference_steps=10
).images[0]
make_image_grid([init_image, image], rows=1, cols=2).save("image_to_image_refiner.png")
