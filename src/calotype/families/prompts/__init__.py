"""Prompts that are weighted or longer than a text encoder reads."""
