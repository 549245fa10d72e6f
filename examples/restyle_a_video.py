"""A video made anew with AnimateDiff, longer than its motion modules attend to at once, its prompt changing on the way.

python examples/restyle_a_video.py [REPOSITORY] [ADAPTER, such as guoyww/animatediff-motion-adapter-v1-5-2] [VIDEO]
"""

import sys

import torch

from calotype import AnimateDiffVideoToVideoPipeline, DDIMScheduler, MotionAdapter
from calotype.utils import export_to_video, load_video
from tiny import DEVICE, DTYPE, SIZE, checkpoint, photo

adapter = MotionAdapter.from_pretrained(checkpoint("motion-adapter", 2), torch_dtype=DTYPE, variant="fp16")
pipeline = AnimateDiffVideoToVideoPipeline.from_pretrained(
    checkpoint("stable-diffusion"), motion_adapter=adapter, torch_dtype=DTYPE, variant="fp16"
)
pipeline.scheduler = DDIMScheduler.from_config(
    pipeline.scheduler.config, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace"
)
pipeline.to(DEVICE)
pipeline.enable_free_noise(context_length=8, context_stride=4)

still = photo().resize((SIZE, SIZE))
video = load_video(sys.argv[3]) if len(sys.argv) > 3 else [still.rotate(6 * angle) for angle in range(12)]
frames = pipeline(
    video,
    prompt={0: "a forest at sunset", 11: "a castle in grass"},
    negative_prompt="blurry",
    strength=0.6,
    num_inference_steps=5,
    generator=torch.Generator().manual_seed(42),
    decode_chunk_size=4,
).frames[0]
export_to_video(frames, "restyled.mp4", fps=8)
