"""Checkpoints in the layout of the programs that trained them, in one file or a few: recognised and read by their keys."""
