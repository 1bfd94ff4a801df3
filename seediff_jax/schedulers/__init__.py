"""Noise schedules and samplers, equal to those of diffusers."""
