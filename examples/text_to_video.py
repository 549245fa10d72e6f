"""A sentence to a short video, and that video again with another look.

python examples/text_to_video.py [REPOSITORY, such as damo-vilab/text-to-video-ms-1.7b]
"""

import torch

from calotype import DiffusionPipeline, DPMSolverMultistepScheduler, VideoToVideoSDPipeline
from calotype.utils import export_to_video
from tiny import DEVICE, DTYPE, checkpoint

repository = checkpoint("text-to-video")
pipeline = DiffusionPipeline.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16").to(DEVICE)
pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
pipeline.enable_vae_slicing()  # decodes a frame at a time

generator = torch.Generator().manual_seed(0)
frames = pipeline("a dog on grass", num_frames=8, num_inference_steps=4, generator=generator).frames[0]
export_to_video(frames, "text_to_video.mp4", fps=8)

again = VideoToVideoSDPipeline(**pipeline.components)
frames = again(
    "a painting of a dog on grass", video=list(frames), strength=0.6, num_inference_steps=5
).frames[0]
export_to_video(frames, "video_to_video.mp4", fps=8)
