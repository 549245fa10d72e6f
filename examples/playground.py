"""Playground v2: SDXL's architecture with weights of its own, and pictures without a watermark.

python examples/playground.py [REPOSITORY, such as playgroundai/playground-v2-1024px-aesthetic]
"""

from calotype import DiffusionPipeline
from tiny import DEVICE, DTYPE, checkpoint

repository = checkpoint("playground")
pipeline = DiffusionPipeline.from_pretrained(
    repository, torch_dtype=DTYPE, use_safetensors=True, add_watermarker=False, variant="fp16"
)
pipeline.to(DEVICE)

image = pipeline("an astronaut in a forest, detailed, 8k", guidance_scale=3.0, num_inference_steps=10).images[
    0
]
image.save("playground.png")
