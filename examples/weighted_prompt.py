"""Words with weights, and prompts that are longer than the text encoder reads at once.

python examples/weighted_prompt.py [REPOSITORY]
"""

import torch

from calotype import AutoPipelineForText2Image
from calotype.utils import contact_sheet
from tiny import DEVICE, DTYPE, checkpoint

repository = checkpoint("stable-diffusion")
pipeline = AutoPipelineForText2Image.from_pretrained(repository, torch_dtype=DTYPE, variant="fp16")
pipeline = pipeline.to(DEVICE)

CALLS = {
    "plain": {"prompt": "a cat in a forest"},
    "a1111": {"prompt": "a (cat:1.4) in a [forest]", "prompt_weighting": "a1111"},
    "compel": {"prompt": "a cat++ in a (forest at sunset)-", "prompt_weighting": "compel"},
    "long": {"prompt": "a cat in a forest, " * 30, "prompt_chunks": True},
}
images = [
    pipeline(**call, generator=torch.Generator(DEVICE).manual_seed(7), num_inference_steps=10).images[0]
    for call in CALLS.values()
]
contact_sheet(images, list(CALLS)).save("weighted_prompt.png")
