"""Samples that a small segmenter learns in seconds, and a training run that kills itself."""

import dataclasses
import os
import pathlib
import signal
import sys
import threading

import flax.linen as nn
import jax
import numpy as np

from experiments.segmenter.config import LAPTOP
from experiments.segmenter.data import ArraySamples
from experiments.segmenter.resnet import conv, norm, resize_bilinear

SMALL = dataclasses.replace(LAPTOP, num_labels=3, crop=32, batch_size=8, steps=4)
LEARNING = dataclasses.replace(SMALL, steps=60, photometric=False, scales=(1.0, 1.0))

# SGD, because AdamW turns the rounding of a gradient near 0 into a step of full length.
TINY = dataclasses.replace(
    SMALL, reproduces="tiny", optimizer="sgd", learning_rate=0.05, steps=3, ema_decay=0.5
)


class TinyNet(nn.Module):
    """A convolution and a norm of the ResNet, and logits; compiles in seconds."""

    num_labels: int
    multiple = 2

    @classmethod
    def of(cls, config):
        return cls(config.num_labels)

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(norm(train, "norm")(conv(8, 3, "conv", stride=2)(images)))
        logits = nn.Conv(self.num_labels, (1, 1), name="logits")(x)
        return (resize_bilinear(logits, *images.shape[1:3]),)


def squares(count):
    """Label 1: a bright square, label 2: a dark one, on grey; 255 around them."""
    rng = np.random.default_rng(3)
    images = np.full((count, 32, 32, 3), 128, np.uint8)
    labels = np.zeros((count, 32, 32), np.uint8)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        top, left = rng.integers(1, 15, 2)
        label[top - 1 : top + 17, left - 1 : left + 17] = 255
        label[top : top + 16, left : left + 16] = 1 + k % 2
        image[top : top + 16, left : left + 16] = (240, 20)[k % 2]
    return ArraySamples(images, labels)


class Deadly(ArraySamples):
    """Kills the process before it reads so many samples."""

    reads, most, lock = 0, 0, threading.Lock()

    def read(self, index):
        with self.lock:
            Deadly.reads += 1
        if Deadly.reads > Deadly.most:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


if __name__ == "__main__":
    # As in the process of the tests: the number of threads, and so rounding, depends on it.
    jax.config.update("jax_num_cpu_devices", 8)
    from experiments.segmenter import trainer

    trainer.make_network = TinyNet.of
    Deadly.most = int(sys.argv[2])
    samples = squares(64)
    trainer.train(
        dataclasses.replace(TINY, steps=30),
        Deadly(samples.images, samples.labels),
        pathlib.Path(sys.argv[1]),
        checkpoint_minutes=0,
        devices=jax.devices()[:1],
    )
