"""Users' own pictures as training data: read from a folder, cut to sizes, encoded once, given out by number."""
