"""Models whose weights live in the host's memory, or on its disk, and visit the accelerator while they are needed."""
