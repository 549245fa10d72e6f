"""A picture that moves as a text says: I2VGen-XL, with a seeded generator.

python examples/image_and_text_to_video.py [REPOSITORY, such as ali-vilab/i2vgen-xl]
"""

import torch

from calotype import I2VGenXLPipeline
from calotype.utils import export_to_video
from tiny import DTYPE, checkpoint, photo, side

repository = checkpoint("image-and-text-to-video")
pipeline = I2VGenXLPipeline.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16")
pipeline.enable_model_cpu_offload()

frames = pipeline(
    "a ball on grass at sunset",
    image=photo(),
    height=side(704),
    width=side(1280),
    num_frames=4,
    num_inference_steps=5,
    negative_prompt="blurry",
    generator=torch.manual_seed(8888),
).frames[0]
export_to_video(frames, "image_and_text_to_video.mp4", fps=8)
