"""Tasks: where the latents start, what the denoiser sees beside them, what is imposed on them and on the result."""
