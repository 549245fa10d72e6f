"""A picture and a text to a picture, with models that visit the accelerator in turns.

python examples/image_to_image.py [REPOSITORY]
"""

from calotype import AutoPipelineForImage2Image
from calotype.utils import make_image_grid
from tiny import DTYPE, checkpoint, photo

repository = checkpoint("stable-diffusion")
pipeline = AutoPipelineForImage2Image.from_pretrained(
    repository, torch_dtype=DTYPE, variant="fp16", use_safetensors=True
)
pipeline.enable_model_cpu_offload()
pipeline.enable_xformers_memory_efficient_attention()  # PyTorch's own attention serves

init_image = photo()
image = pipeline("a castle at sunset, painting", image=init_image, num_inference_steps=10).images[0]
make_image_grid([init_image, image], rows=1, cols=2).save("image_to_image.png")
