"""SeeDiff in JAX/Flax: a text prompt in, an image and its pixel masks out."""

__version__ = "0.1.0"
