"""Teaching a checkpoint from users' own pictures: all of it, low-rank weights, or a word."""
