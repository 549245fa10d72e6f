"""Checkpoints in the layout of the programs that trained them, one file or a few: recognised and read by keys alone."""
