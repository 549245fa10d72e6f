"""Checkpoints in one file, in the layout of the programs that trained them: recognised and read by their keys alone."""
