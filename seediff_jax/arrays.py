"""Array types: axis letters, jaxtyping aliases and the run-time shape check.

Axis letters, used in every signature of the package:

    b  batch (images)        c  classes of an image     l  text tokens      d  embedding width
    n  image locations of one attention level (n = side * side), row major
    h  height                w  width                   H, W  height, width of the image, pixels

Images and latents are NHWC. A single axis is written with a leading blank (`" n"`).
"""

from beartype import beartype
from jax import Array
from jaxtyping import Bool, Float, Int, Real, UInt8, jaxtyped

typechecked = jaxtyped(typechecker=beartype)
"""Decorator: checks shapes and dtypes of arguments and results while tracing, not once compiled."""

__all__ = ["Array", "Bool", "Float", "Int", "Real", "UInt8", "typechecked"]
