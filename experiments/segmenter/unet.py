"""A small U-Net for laptops."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.segmenter.resnet import resize_bilinear


class SmallUNet(nn.Module):
    """A U-Net of four levels; the finest logits have half the side of the image.

    Attributes:
        num_labels: labels, background included.
    """

    num_labels: int
    multiple = 16

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array]:
        """`[b, h, w, 3]` -> logits `[b, h, w, labels]`; sides are multiples of 16."""
        del train

        def block(x, width, strides=1):
            return nn.relu(nn.GroupNorm(8)(nn.Conv(width, (3, 3), strides=strides)(x)))

        x, skips = images, []
        for width in (16, 32, 64, 128):
            x = block(x, width, strides=2)
            skips.append(x)
        x = block(x, 128)
        for width, skip in zip((64, 32, 24), skips[-2::-1], strict=True):
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = block(jnp.concatenate([x, skip], axis=-1), width)
        logits = nn.Conv(self.num_labels, (3, 3))(x)
        _, h, w, _ = images.shape
        return (resize_bilinear(logits, h, w),)
