"""Stable Diffusion as Flax Linen modules that return their attention."""
