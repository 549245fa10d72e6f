"""Controls: pictures that steer the denoiser from beside it. Each yields residuals, and they add."""
