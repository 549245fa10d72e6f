"""Recipes: what was trained with this package, from data to model card."""
