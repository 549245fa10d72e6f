"""A video from a model of pictures (Text2Video-Zero), a few frames at a time, so that it may be of any length.

Each part begins with the first frame, to which the others attend, and with the same noise.

python examples/video_from_a_model_of_pictures.py [REPOSITORY, such as stable-diffusion-v1-5/stable-diffusion-v1-5]
"""

import torch

from calotype import TextToVideoZeroPipeline
from calotype.utils import export_to_video
from tiny import DEVICE, DTYPE, checkpoint

repository = checkpoint("stable-diffusion")
pipeline = TextToVideoZeroPipeline.from_pretrained(
    repository, torch_dtype=DTYPE, variant="fp16", safety_checker=None, feature_extractor=None
).to(DEVICE)

video = []
for numbers in ([0, 1, 2], [0, 3, 4]):
    part = pipeline(
        "a dog on grass",
        video_length=len(numbers),
        frame_ids=numbers,
        num_inference_steps=6,
        t0=3,
        t1=4,
        generator=torch.Generator().manual_seed(0),
    ).images
    video.extend(part if not video else part[1:])
export_to_video(video, "video_from_a_model_of_pictures.mp4", fps=4)
