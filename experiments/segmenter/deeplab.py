"""DeepLabV3 (arXiv 1706.05587) with an auxiliary head, in mmsegmentation's form.

Atrous spatial pyramid pooling: the image's mean, a 1 x 1 convolution and 3 x 3 convolutions at
several dilations, joined by another 3 x 3 convolution. The auxiliary head reads stage 3 and only
matters in training.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.segmenter.resnet import ResNet, conv, norm, resize_bilinear


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU.

    Attributes:
        width: channels of the output.
        size: edge of the kernel.
        dilation: of the convolution.
    """

    width: int
    size: int = 3
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[b, h, w, c]` -> `[b, h, w, width]`."""
        x = conv(self.width, self.size, "conv", dilation=self.dilation)(x)
        return nn.relu(norm(train, "norm")(x))


class DeepLabV3(nn.Module):
    """ResNet, pyramid pooling, and an auxiliary head.

    Attributes:
        num_labels: labels, background included.
        backbone: the ResNet.
        width: channels of the head.
        auxiliary_width: channels of the auxiliary head.
        dilations: of the pyramid; 1 is the 1 x 1 convolution.
        dropout: before the logits of both heads.
    """

    num_labels: int
    backbone: ResNet
    width: int = 512
    auxiliary_width: int = 256
    dilations: tuple[int, ...] = (1, 12, 24, 36)
    dropout: float = 0.1
    multiple = 8

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """`[b, h, w, 3]` -> logits `[b, h, w, labels]` of the head, and in training of both."""
        _, height, width, _ = images.shape
        *_, third, last = self.backbone(images, train)
        logits = [self._classify(self._pyramid(last, train), "logits", train)]
        # Outside of training it is made as well, so that `init` finds its weights; XLA drops it.
        auxiliary = ConvNorm(self.auxiliary_width, name="auxiliary_conv")(third, train)
        logits.append(self._classify(auxiliary, "auxiliary_logits", train))
        heads = tuple(resize_bilinear(x, height, width) for x in logits)
        return heads if train else heads[:1]

    def _pyramid(self, x: jax.Array, train: bool) -> jax.Array:
        mean = jnp.mean(x, axis=(1, 2), keepdims=True)
        pooled = ConvNorm(self.width, 1, name="image_mean")(mean, train)
        branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.width))]
        for k, dilation in enumerate(self.dilations):
            size = 1 if dilation == 1 else 3
            branch = ConvNorm(self.width, size, dilation, name=f"branch_{k}")
            branches.append(branch(x, train))
        return ConvNorm(self.width, name="join")(jnp.concatenate(branches, axis=-1), train)

    def _classify(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        # Whole channels are dropped, as by torch's Dropout2d.
        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        return nn.Conv(self.num_labels, (1, 1), name=name)(drop(x))
