"""SegmenterConfig: everything that a trained segmenter depends on, except its data and seed."""

import dataclasses

from seediff_jax.errors import UserError
from seediff_jax.settings import check_settings, setting

NETWORKS = ("unet", "resnet50", "resnet101")
OPTIMIZERS = ("adamw", "sgd")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """A recipe; hashable. Labels are 0 (background) to `num_labels` - 1, and 255 (ignored).

    Raises:
        UserError: a value is out of range.
    """

    reproduces: str = setting("", "What the recipe reproduces.")
    network: str = setting(
        "unet", "Network: a small U-Net, or DeepLabV3 on a ResNet.", choices=NETWORKS
    )
    deep_stem: bool = setting(False, "Three 3 x 3 convolutions as the stem of a ResNet.")
    dtype: str = setting(
        "float32", "Dtype in which the network computes; weights are float32.", choices=DTYPES
    )
    num_labels: int = setting(21, "Number of labels, background included.", least=2, most=255)
    steps: int = setting(1500, "Training steps.", least=1)
    batch_size: int = setting(16, "Images per step.", least=1)
    optimizer: str = setting("adamw", "Optimiser.", choices=OPTIMIZERS)
    learning_rate: float = setting(2e-3, "Learning rate at the first step.", least=0)
    final_rate: float = setting(0.0, "Learning rate after the last step.", least=0)
    power: float = setting(0.9, "Exponent of the polynomial decay between both.", least=0)
    backbone_factor: float = setting(1.0, "Factor on the rate of the backbone.", least=0)
    weight_decay: float = setting(1e-4, "Weight decay.", least=0)
    momentum: float = setting(0.9, "Momentum of sgd; the first beta of adamw.", least=0, most=1)
    clip_norm: float = setting(1.0, "Largest global norm of the gradient; 0 is none.", least=0)
    auxiliary_weight: float = setting(0.4, "Weight of the auxiliary head's loss.", least=0)
    ema_decay: float = setting(0.99, "Decay of the averaged weights.", least=0, most=1)
    crop: int = setting(128, "Edge of the training images, pixels.", least=16)
    scales: tuple[float, ...] = setting(
        (0.75, 1.5), "Range of the shorter side before cropping, as a share of crop.", least=0.01
    )
    max_share: float = setting(
        1.0, "A crop with a larger share of one class is drawn again, ten times.", least=0, most=1
    )
    photometric: bool = setting(True, "Distort brightness, contrast, saturation and hue.")
    noise: float = setting(0.0, "Largest standard deviation of noise, of 255.", least=0, most=1)
    test_side: int | None = setting(
        None, "Shorter side of test images, whose ratio is kept; None is their own.", least=16
    )
    mean: tuple[float, ...] = setting((127.5,) * 3, "Mean of the colours, in 0..255.", least=0)
    std: tuple[float, ...] = setting((127.5,) * 3, "Standard deviation of them.", least=0.01)

    def __post_init__(self):
        check_settings(self)
        if len(self.scales) != 2 or self.scales[0] > self.scales[1]:
            raise UserError(f"scales={list(self.scales)} must be two numbers that do not fall")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise UserError("mean and std must have a number per colour")


LAPTOP = SegmenterConfig(reproduces="nothing published: a small network for images of 128 x 128")
"""Minutes of one CPU core."""

_IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
DATASET_DIFFUSION = SegmenterConfig(
    reproduces=(
        "Dataset Diffusion's segmenter for VOC (arXiv 2309.14303): DeepLabV3 on ResNet-50 V1c, "
        "output stride 8; there the loss of ignored pixels counts as 0 in the mean"
    ),
    network="resnet50",
    deep_stem=True,
    steps=20_000,
    batch_size=8,
    learning_rate=1e-4,
    backbone_factor=0.1,
    weight_decay=1e-4,
    clip_norm=0.01,
    ema_decay=0.0,
    crop=512,
    scales=(0.5, 2.0),
    max_share=0.75,
    test_side=512,
    **_IMAGENET,
)

DATASET_DIFFUSION_COCO = dataclasses.replace(
    DATASET_DIFFUSION,
    reproduces="Dataset Diffusion's segmenter for COCO: that for VOC, with 81 labels and 40k steps",
    num_labels=81,
    steps=40_000,
)

MMSEGMENTATION = dataclasses.replace(
    DATASET_DIFFUSION,
    reproduces="mmsegmentation's DeepLabV3 R50-D8 on VOC 2012 with extra annotations, 20k steps",
    batch_size=16,
    optimizer="sgd",
    learning_rate=0.01,
    final_rate=1e-4,
    backbone_factor=1.0,
    weight_decay=5e-4,
    clip_norm=0.0,
)
"""For real data."""

RECIPES = {
    "laptop": LAPTOP,
    "dataset_diffusion": DATASET_DIFFUSION,
    "dataset_diffusion_coco": DATASET_DIFFUSION_COCO,
    "mmsegmentation": MMSEGMENTATION,
}
"""Recipes by name."""
