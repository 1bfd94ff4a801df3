"""Adds a finest level to a trained UNet, so that it draws images of twice the side.

The composition of an image is learned where it is cheap, at half the side, and kept: the new level
starts as an average over 2 x 2 pixels on the way down and as a repetition of pixels on the way up
(compare Karras et al., arXiv 1710.10196).
"""

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.training.state import Params


def grow_unet(inner: Params, unet: Params) -> Params:
    """Copies a trained UNet into one with an additional finest level.

    Args:
        inner: params of the trained UNet; see `networks.inner_unet_json`.
        unet: params of the larger one, as they are initialised. Its two finest levels must be
            equally wide.

    Returns:
        Params like `unet`. If only kernels of a single pixel mattered, the new UNet would map an
        image with each pixel repeated in 2 x 2 to the inner one's result, repeated likewise.
    """
    trained, grown = flatten_dict(inner, sep="/"), {}
    for name, value in flatten_dict(unet, sep="/").items():
        source = _inner_name(name)
        if source in trained:
            grown[name] = trained[source]
        else:
            grown[name] = jnp.asarray(_passing_on(name, np.array(value)))
    return unflatten_dict(grown, sep="/")


def _inner_name(name: str) -> str:
    """Name of the same layer in the inner UNet, which lacks the first level on the way down."""
    block, _, rest = name.partition("/")
    if not block.startswith("down_blocks_"):
        return name
    return f"down_blocks_{int(block.rpartition('_')[2]) - 1}/{rest}"


def _passing_on(name: str, value: np.ndarray) -> np.ndarray:
    """A new layer that passes its input on: averaged, repeated, or with nothing added to it."""
    identity = np.eye(value.shape[-1], dtype=value.dtype)
    if name.endswith("downsamplers_0/conv/kernel"):
        value[:] = 0
        value[1:, 1:] = identity / 4
    elif name.endswith("upsamplers_0/conv/kernel"):
        value[:] = 0
        value[1, 1] = identity
    elif name.endswith("conv_shortcut/kernel"):
        value[:] = 0
        value[0, 0, : len(identity)] = identity  # not the part that skipped the coarser levels
    elif name.endswith(("conv2/kernel", "proj_out/kernel")):
        value[:] = 0
    return value
