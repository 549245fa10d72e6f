"""What can be wrong with a checkpoint, a picture, a call or a machine, and what is said about it."""
