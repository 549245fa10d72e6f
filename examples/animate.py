"""A Stable Diffusion checkpoint that moves, with AnimateDiff's motion adapter.

python examples/animate.py [REPOSITORY] [ADAPTER, such as guoyww/animatediff-motion-adapter-v1-5-2]
"""

import torch

from calotype import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from calotype.utils import export_to_gif, export_to_video
from tiny import DEVICE, DTYPE, checkpoint

adapter = MotionAdapter.from_pretrained(checkpoint("motion-adapter", 2), torch_dtype=DTYPE, variant="fp16")
pipeline = AnimateDiffPipeline.from_pretrained(
    checkpoint("stable-diffusion"), motion_adapter=adapter, torch_dtype=DTYPE, variant="fp16"
)
pipeline.scheduler = DDIMScheduler.from_config(
    pipeline.scheduler.config, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace"
)
pipeline.to(DEVICE)

frames = pipeline(
    "a ball in a forest at sunset",
    negative_prompt="blurry",
    num_frames=8,
    num_inference_steps=5,
    generator=torch.Generator().manual_seed(42),
    decode_chunk_size=4,  # in bounded memory
).frames[0]
export_to_gif(frames, "animate.gif")
export_to_video(frames, "animate.mp4", fps=8)
