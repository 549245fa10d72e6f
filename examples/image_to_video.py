"""A picture that moves: Stable Video Diffusion, with a seeded generator, decoded a few frames at a time.

python examples/image_to_video.py [REPOSITORY, such as stabilityai/stable-video-diffusion-img2vid]
"""

import torch

from calotype import StableVideoDiffusionPipeline
from calotype.utils import export_to_video
from tiny import DTYPE, checkpoint, photo, side

repository = checkpoint("image-to-video")
pipeline = StableVideoDiffusionPipeline.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16")
pipeline.enable_model_cpu_offload()
pipeline.unet.enable_forward_chunking()  # less memory, more time

width, height = side(1024), side(576)
image = photo().resize((width, height))
generator = torch.manual_seed(42)
frames = pipeline(
    image, height=height, width=width, num_inference_steps=10, decode_chunk_size=2, generator=generator
).frames[0]
export_to_video(frames, "image_to_video.mp4", fps=7)
