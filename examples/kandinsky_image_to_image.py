"""A sketch to a picture with Kandinsky 2.2.

python examples/kandinsky_image_to_image.py [REPOSITORY, such as kandinsky-community/kandinsky-2-2-decoder]
"""

from PIL import ImageFilter

from calotype import AutoPipelineForImage2Image
from calotype.utils import make_image_grid
from tiny import DTYPE, checkpoint, photo, side

repository = checkpoint("kandinsky")
pipeline = AutoPipelineForImage2Image.from_pretrained(repository, torch_dtype=DTYPE, use_safetensors=True)
pipeline.enable_model_cpu_offload()

sketch = photo().filter(ImageFilter.FIND_EDGES).resize((side(768), side(768)))
image = pipeline(
    prompt="a castle at sunset, detailed painting",
    negative_prompt="blurry, low quality",
    image=sketch,
    strength=0.5,
    prior_num_inference_steps=10,
    num_inference_steps=10,
    height=side(768),
    width=side(768),
).images[0]
make_image_grid([sketch, image], rows=1, cols=2).save("kandinsky_image_to_image.png")
