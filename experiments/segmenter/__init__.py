"""Semantic segmentation on generated pairs: networks, recipes, trainer and metric."""
