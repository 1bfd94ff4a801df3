"""Results must not depend on how a batch is split: the same bits on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.label_maps import label_map
from seediff_jax.masks.methods import class_soft_mask
from seediff_jax.masks.refinement import refine
from tests.helpers.random_attention import random_attention

NUM_DEVICES = 8

CONFIGS = [
    MaskConfig(),
    MaskConfig(power=3, background=False),
    MaskConfig(affinity="transition", power=2),
    MaskConfig(method="exponentiation"),
    MaskConfig(method="cross_attention"),
]


def attention_batch(sides, batch_size, num_objects):
    cases = [random_attention(rng_seed, sides, num_objects) for rng_seed in range(batch_size)]
    cross_attention = jnp.asarray(np.stack([cross for cross, _ in cases]))
    return cross_attention, {
        side: jnp.asarray(np.stack([levels[side] for _, levels in cases])) for side in sides
    }


def batch_kernel(config):
    """Soft masks and label maps of a batch: the kernel of one class, vmapped twice."""

    def one_class(cross_attention, self_attention):
        return class_soft_mask(cross_attention, self_attention, 64, config)

    def one_image(cross_attention, self_attention):
        soft_masks = jax.vmap(one_class, in_axes=(-1, None))(cross_attention, self_attention)
        return soft_masks, label_map(soft_masks, 0.5, 0.4)

    return jax.vmap(one_image)


def on_one_device(kernel, batch):
    return jax.jit(kernel)(*jax.device_put(batch, jax.devices()[0]))


def with_shard_map(kernel, batch):
    mesh = jax.make_mesh((NUM_DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(kernel, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    return jax.jit(sharded)(*batch)


def with_pmap(kernel, batch):
    split = jax.tree.map(lambda leaf: leaf.reshape(NUM_DEVICES, -1, *leaf.shape[1:]), batch)
    result = jax.pmap(kernel)(*split)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), result)


def assert_same_bits(got, expected):
    for got_leaf, expected_leaf in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(got_leaf, expected_leaf)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_eight_devices_give_the_same_bits_as_one(config):
    batch = attention_batch((8, 16, 32), NUM_DEVICES, num_objects=3)
    kernel = batch_kernel(config)
    expected = on_one_device(kernel, batch)
    assert len(np.unique(expected[1])) > 1
    assert_same_bits(with_shard_map(kernel, batch), expected)
    assert_same_bits(with_pmap(kernel, batch), expected)


@pytest.mark.parametrize(
    ("sides", "batch_size", "num_objects"),
    [
        pytest.param((12, 24), 8, 1, marks=pytest.mark.slow),
        pytest.param((16, 32), 8, 2, marks=pytest.mark.slow),
        ((16, 32), 24, 1),
    ],
)
def test_bits_do_not_depend_on_the_batch_per_device(sides, batch_size, num_objects):
    batch = attention_batch(sides, batch_size, num_objects)
    kernel = batch_kernel(MaskConfig())
    expected = on_one_device(kernel, batch)
    assert_same_bits(with_shard_map(kernel, batch), expected)
    assert_same_bits(with_pmap(kernel, batch), expected)


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4)], ids=str)
def test_refinement_on_eight_devices_gives_the_same_bits_as_one(dilations):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (NUM_DEVICES, 32, 32, 3)), jnp.uint8)
    soft_masks = jnp.asarray(rng.random((NUM_DEVICES, 2, 32, 32)), jnp.float32)

    def one_mask(image, soft_mask):
        return refine(image, soft_mask, iterations=20, dilations=dilations)

    kernel = jax.vmap(jax.vmap(one_mask, in_axes=(None, 0)))
    expected = on_one_device(kernel, (images, soft_masks))
    assert_same_bits(with_shard_map(kernel, (images, soft_masks)), expected)
    assert_same_bits(with_pmap(kernel, (images, soft_masks)), expected)
