"""Prompts in, images with masks out: settings, compiled programs, devices."""
