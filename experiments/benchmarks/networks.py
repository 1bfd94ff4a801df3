"""Models with random weights in the sizes that are measured: time does not depend on the values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shapes import recipe
from seediff_jax.models.config import UNetConfig, unet_config

TOKENS = 77

SD1_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
UNETS = {
    "sd1": SD1_UNET,
    "small": {k: v for k, v in recipe.UNET_JSON.items() if not k.startswith("_")},
}
"""UNets by name: Stable Diffusion 1, and that of the embedded model for a quick check."""


def random_params(init: Callable[[], Any], rng_seed: int = 0) -> Any:
    """Draws float32 params in the shapes that `init` would return: unit gain, no bias.

    Leaf by leaf and without a compiled program, so that the peak memory is that of the params.
    """
    random = np.random.default_rng(rng_seed)

    def draw(path, leaf):
        if leaf.ndim == 1:
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        values = random.standard_normal(leaf.shape, np.float32)
        values /= np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return jnp.asarray(values)

    return jax.tree.map_with_path(draw, jax.eval_shape(init))


class UNetInputs(NamedTuple):
    """Inputs of one UNet call in their order, channels last."""

    latents: np.ndarray
    timesteps: np.ndarray
    text_embeddings: np.ndarray


def random_inputs(config: UNetConfig, batch_size: int) -> UNetInputs:
    """Normal latents and text embeddings at timestep 437."""
    random = np.random.default_rng(1)
    side = config.sample_size
    return UNetInputs(
        random.standard_normal((batch_size, side, side, config.in_channels), np.float32),
        np.full(batch_size, 437, np.int32),
        random.standard_normal((batch_size, TOKENS, config.cross_attention_dim), np.float32),
    )


def make_unet_config(name: str) -> UNetConfig:
    """The config of a UNet of UNETS."""
    return unet_config(UNETS[name])
