"""SDXL as an ensemble: the base model takes the first four fifths of the steps, the refiner the last.

python examples/base_and_refiner.py [BASE] [REFINER]
"""

from calotype import DiffusionPipeline
from tiny import DEVICE, DTYPE, checkpoint

base = DiffusionPipeline.from_pretrained(
    checkpoint("stable-diffusion-xl"), torch_dtype=DTYPE, variant="fp16", use_safetensors=True
).to(DEVICE)
refiner = DiffusionPipeline.from_pretrained(
    checkpoint("stable-diffusion-xl-refiner", argument=2),
    text_encoder_2=base.text_encoder_2,
    vae=base.vae,
    torch_dtype=DTYPE,
    variant="fp16",
    use_safetensors=True,
).to(DEVICE)

prompt, steps, share = "a castle in a forest, detailed", 10, 0.8
latents = base(prompt=prompt, num_inference_steps=steps, denoising_end=share, output_type="latent").images
image = refiner(prompt=prompt, num_inference_steps=steps, denoising_start=share, image=latents).images[0]
image.save("base_and_refiner.png")
