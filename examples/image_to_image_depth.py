"""A picture to a picture that keeps its depth, through a ControlNet.

python examples/image_to_image_depth.py [REPOSITORY] [CONTROLNET] [DEPTH ESTIMATOR, such as Intel/dpt-large]
"""

from calotype import AutoPipelineForImage2Image, ControlNetModel
from calotype.annotators import depth
from calotype.utils import make_image_grid
from tiny import DTYPE, checkpoint, photo

repository, control = checkpoint("stable-diffusion"), checkpoint("controlnet", argument=2)
controlnet = ControlNetModel.from_pretrained(control, torch_dtype=DTYPE, variant="fp16", use_safetensors=True)
pipeline = AutoPipelineForImage2Image.from_pretrained(
    repository, controlnet=controlnet, torch_dtype=DTYPE, variant="fp16", use_safetensors=True
)
pipeline.enable_model_cpu_offload()
pipeline.enable_xformers_memory_efficient_attention()

init_image = photo()
depth_image = depth(init_image, checkpoint("depth-estimator", argument=3))
image = pipeline(
    "a castle at sunset, painting", image=init_image, control_image=depth_image, num_inference_steps=10
).images[0]
make_image_grid([init_image, depth_image, image], rows=1, cols=3).save("image_to_image_depth.png")
