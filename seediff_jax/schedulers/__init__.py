"""Noise schedules and samplers, held to diffusers."""
