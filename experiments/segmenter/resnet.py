"""ResNet as the backbone of a segmenter: dilations in place of strides keep features large.

Output stride 8 ("D8"): strides 1, 2, 1, 1 and dilations 1, 1, 2, 4 of the four stages (DeepLabV3,
arXiv 1706.05587). The stride of a bottleneck is in its 3 x 3 convolution, as in torchvision. The
first block of a dilated stage has half of the dilation (mmsegmentation's `contract_dilation`).
"""

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seediff_jax.checkpoints.safetensors_files import Tensors, open_weights
from seediff_jax.errors import UserError, listed

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
"""Blocks of each stage."""

_EPSILON, _MOMENTUM = 1e-5, 0.9


def norm(train: bool, name: str) -> nn.BatchNorm:
    """Batch norm; in a program that devices share, its statistics are those of the whole batch."""
    return nn.BatchNorm(
        use_running_average=not train, epsilon=_EPSILON, momentum=_MOMENTUM, name=name
    )


def conv(width: int, size: int, name: str, *, stride: int = 1, dilation: int = 1) -> nn.Conv:
    """A convolution without bias whose output has the size of its input, divided by the stride."""
    padding = [(dilation * (size // 2),) * 2] * 2
    return nn.Conv(
        width, (size, size), strides=stride, kernel_dilation=dilation, padding=padding,
        use_bias=False, name=name,
    )  # fmt: skip


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, each with batch norm, beside a shortcut.

    Attributes:
        width: channels of the output; inside there are a quarter of them.
        stride: of the 3 x 3 convolution.
        dilation: of it.
    """

    width: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[b, h, w, c]` -> `[b, h / stride, w / stride, width]`."""
        inner, options = self.width // 4, {"stride": self.stride, "dilation": self.dilation}
        y = nn.relu(norm(train, "norm_0")(conv(inner, 1, "conv_0")(x)))
        y = nn.relu(norm(train, "norm_1")(conv(inner, 3, "conv_1", **options)(y)))
        y = norm(train, "norm_2")(conv(self.width, 1, "conv_2")(y))
        if x.shape[-1] != self.width or self.stride > 1:
            x = conv(self.width, 1, "shortcut_conv", stride=self.stride)(x)
            x = norm(train, "shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The backbone.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
        stem_width: channels of the stem.
        deep_stem: three 3 x 3 convolutions in place of one of 7 x 7 (ResNet-C, "V1c").
        strides: of the first block of each stage.
        dilations: of the 3 x 3 convolutions of each stage.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    deep_stem: bool = False
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[jax.Array]:
        """`[b, h, w, 3]`, normalised -> the output of every stage."""
        x, outputs = images, []
        half = self.stem_width // 2
        layers = [(half, 3, 2), (half, 3, 1), (self.stem_width, 3, 1)]
        for k, (width, size, stride) in enumerate(
            layers if self.deep_stem else [(self.stem_width, 7, 2)]
        ):
            x = conv(width, size, f"stem_conv_{k}", stride=stride)(x)
            x = nn.relu(norm(train, f"stem_norm_{k}")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        plan = zip(self.depths, self.widths, self.strides, self.dilations, strict=True)
        for stage, (depth, width, stride, dilation) in enumerate(plan):
            for layer in range(depth):
                first = layer == 0
                block = Bottleneck(
                    width,
                    stride if first else 1,
                    max(1, dilation // 2) if first else dilation,
                    name=f"stage_{stage}_layer_{layer}",
                )
                x = block(x, train)
            outputs.append(x)
        return outputs


_PARTS = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var",
}  # fmt: skip


def _transformers_name(module: str, part: str) -> str:
    """The name of a tensor in transformers' ResNet, from our module and its part."""
    kind = "normalization" if "norm" in module.split("/")[-1] else "convolution"
    end = f"{kind}.{_PARTS[part]}"
    if module.startswith("stem"):
        return f"embedder.embedder.{end}"
    block, name = module.split("/")
    _, stage, _, layer = block.split("_")
    place = "shortcut" if name.startswith("shortcut") else f"layer.{name[-1]}"
    return f"encoder.stages.{stage}.layers.{layer}.{place}.{end}"


def _torchvision_name(module: str, part: str, deep: bool = False) -> str:
    """The name of a tensor in torchvision's ResNet; `deep` is the stem of mmsegmentation's V1c."""
    if module.startswith("stem") and deep:
        return f"stem.{3 * int(module[-1]) + ('norm' in module)}.{_PARTS[part]}"
    if module.startswith("stem"):
        return f"{'bn1' if 'norm' in module else 'conv1'}.{_PARTS[part]}"
    block, name = module.split("/")
    _, stage, _, layer = block.split("_")
    kind = "bn" if "norm" in name else "conv"
    shortcut = f"downsample.{int(kind == 'bn')}"
    place = shortcut if name.startswith("shortcut") else f"{kind}{int(name[-1]) + 1}"
    return f"layer{int(stage) + 1}.{layer}.{place}.{_PARTS[part]}"


def _choose_naming(stored: Collection[str]) -> Callable[[str, str], str]:
    if "stem.0.weight" in stored:
        return functools.partial(_torchvision_name, deep=True)
    return _torchvision_name if "conv1.weight" in stored else _transformers_name


def read_backbone(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads ImageNet weights of a ResNet.

    Args:
        path: safetensors file in the names of transformers (with or without "resnet."), torchvision
            or, for a deep stem, mmsegmentation; its classifier is ignored.
        expected: "params" and "batch_stats" of a ResNet, arrays or shapes.

    Returns:
        The same tree with the weights of the file, float32.

    Raises:
        UserError: the file lacks a tensor, or one has another shape; all of them are named.
    """
    stored = {
        name.removeprefix("resnet."): tensor for name, tensor in open_weights(path)[0].items()
    }
    naming = _choose_naming(stored)
    faults: list[str] = []
    read = functools.partial(_read_leaf, stored, naming, faults)
    found = {kind: jax.tree.map_with_path(read, dict(expected[kind])) for kind in expected}
    unread = {n for n in stored if not n.startswith(("classifier", "fc."))}
    unread -= {n for n in stored if n.endswith("num_batches_tracked")}
    names = [
        naming("/".join(key.key for key in path[:-1]), path[-1].key)
        for kind in expected
        for path, _ in jax.tree_util.tree_leaves_with_path(dict(expected[kind]))
    ]
    faults += [f"{name} has no place" for name in sorted(unread - {*names})]
    if faults:
        raise UserError(f"{path} is not the expected ResNet: {listed(faults)}")
    return found


def _read_leaf(stored: Tensors, naming, faults: list[str], path, leaf) -> np.ndarray:
    name = naming("/".join(key.key for key in path[:-1]), path[-1].key)
    if name not in stored:
        faults.append(f"{name} is missing")
        return np.zeros(leaf.shape, np.float32)
    array = stored[name].read()
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    if array.shape != leaf.shape:
        faults.append(f"{name} has shape {list(stored[name].shape)}")
    return np.ascontiguousarray(array)


def resize_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Scales `[b, h, w, c]` up, bilinearly, corners not aligned; returns float32."""
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(x.astype(jnp.float32), shape, "bilinear")
