"""Inpainting with any checkpoint: a ControlNet is told what to keep, and sees -1 where the mask is white.

python examples/inpainting_controlnet.py [REPOSITORY] [CONTROLNET, such as lllyasviel/control_v11p_sd15_inpaint]
"""

from calotype import ControlNetModel, StableDiffusionControlNetInpaintPipeline
from calotype.annotators import make_inpaint_condition
from calotype.utils import make_image_grid
from tiny import DTYPE, checkpoint, mask, photo

repository, control = checkpoint("stable-diffusion"), checkpoint("controlnet", argument=2)
controlnet = ControlNetModel.from_pretrained(control, torch_dtype=DTYPE, variant="fp16")
pipeline = StableDiffusionControlNetInpaintPipeline.from_pretrained(
    repository, controlnet=controlnet, torch_dtype=DTYPE, variant="fp16"
)
pipeline.enable_model_cpu_offload()

init_image, mask_image = photo(), mask()
control_image = make_inpaint_condition(init_image, mask_image)
assert control_image.min() == -1.0
image = pipeline(
    "a cat on the grass",
    image=init_image,
    mask_image=mask_image,
    control_image=control_image,
    num_inference_steps=10,
).images[0]
make_image_grid([init_image, mask_image, image], rows=1, cols=3).save("inpainting_controlnet.png")
