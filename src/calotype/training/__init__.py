"""Training: objectives, moving averages, checkpoints and one loop, put together by recipes."""
