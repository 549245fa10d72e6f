"""What people add to a checkpoint: low-rank updates of its weights (LoRA and its kin) and learned words."""
