"""New content where a mask is white, with the decoder of Kandinsky 2.2 that was made for it.

python examples/kandinsky_inpainting.py [REPOSITORY, such as kandinsky-community/kandinsky-2-2-decoder-inpaint]
"""

from calotype import AutoPipelineForInpainting
from calotype.utils import make_image_grid
from tiny import DTYPE, checkpoint, mask, photo, side

repository = checkpoint("kandinsky-inpainting")
pipeline = AutoPipelineForInpainting.from_pretrained(repository, torch_dtype=DTYPE)
pipeline.enable_model_cpu_offload()

init_image, mask_image = (picture.resize((side(768), side(768))) for picture in (photo(), mask()))
image = pipeline(
    prompt="a cat on the grass, detailed",
    negative_prompt="blurry, low quality",
    image=init_image,
    mask_image=mask_image,
    prior_num_inference_steps=10,
    num_inference_steps=10,
    height=side(768),
    width=side(768),
).images[0]
make_image_grid([init_image, mask_image, image], rows=1, cols=3).save("kandinsky_inpainting.png")
