"""Which implementation of attention is chosen, and what a forced one says that cannot be used."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from seediff_jax.errors import UserError
from seediff_jax.models.attention import place_of
from seediff_jax.models.attention_choice import (
    FLASH_QUERIES,
    VMEM,
    Layer,
    Place,
    choose,
    flash_blocks,
)
from seediff_jax.models.attention_plan import describe_attention, plan_attention
from tests.helpers.random_models import small_config

V5E, V4 = Place("tpu", "TPU v5 lite"), Place("tpu", "TPU v4")
H100, A100 = Place("cuda", "H100", (9, 0)), Place("cuda", "A100", (8, 0))
FINEST = Layer("bfloat16", 8, 40, 4096, 4096)
CROSS = Layer("bfloat16", 8, 40, 4096, 77)
COARSEST = Layer("bfloat16", 8, 160, 256, 256)


def recorded(layer):
    return layer._replace(is_recorded=True)


@pytest.mark.parametrize(
    ("place", "layer", "expected"),
    [
        (V5E, FINEST, "flash"),
        (V5E, recorded(FINEST), "flash"),
        (V4, recorded(FINEST), "flash"),
        (V5E, FINEST._replace(queries=FLASH_QUERIES - 1), "xla"),
        (V5E, CROSS, "flash"),
        (V5E, recorded(COARSEST), "xla"),
        (V5E, FINEST._replace(dtype="float16"), "xla"),
        (V4, FINEST._replace(keys=9216, queries=9216), "xla"),  # 16 MiB of on-chip memory
        (Place("tpu", "TPU of tomorrow"), FINEST, "flash"),
        (V5E._replace(is_split=True), FINEST, "xla"),
        (H100, FINEST, "cudnn"),
        (H100, CROSS, "cudnn"),
        (H100, recorded(FINEST), "xla"),  # cuDNN returns no probabilities
        (H100, FINEST._replace(dtype="float32"), "xla"),
        (H100, COARSEST, "cudnn"),
        (A100, COARSEST, "xla"),
        (Place("cuda", "a GPU without cuDNN"), FINEST, "xla"),
        (Place("cpu", "cpu"), FINEST, "xla"),
        (Place("rocm", "MI300"), FINEST, "xla"),
    ],
)
def test_every_platform_has_its_order_of_fallbacks(place, layer, expected):
    assert choose(layer, place) == expected


@pytest.mark.parametrize("place", [V5E, V4, H100, Place("cpu")])
@pytest.mark.parametrize("layer", [FINEST, recorded(FINEST), CROSS])
def test_xla_can_always_be_forced(place, layer):
    assert choose(layer, place, "xla") == "xla"


@pytest.mark.parametrize(
    ("choice", "layer", "place", "reason"),
    [
        ("flash", FINEST, Place("cpu"), "it needs a TPU, the devices are of platform cpu"),
        ("flash", FINEST._replace(dtype="float16"), V5E, "it needs bfloat16 or float32"),
        ("flash", FINEST, V5E._replace(is_split=True), "the model axis of the mesh"),
        (
            "flash",
            Layer("bfloat16", 5, 64, 9216, 9216),
            V4,
            "9216 keys of head width 64 do not fit into the 16 MiB of on-chip memory of TPU v4",
        ),
        ("cudnn", FINEST, V5E, "it needs an NVIDIA GPU with cuDNN"),
        ("cudnn", FINEST, Place("cpu"), "it needs an NVIDIA GPU with cuDNN"),
        ("cudnn", FINEST._replace(dtype="float32"), H100, "it needs bfloat16 or float16"),
        ("cudnn", COARSEST, A100, "multiples of 8 up to 128 on this GPU, a layer has 160"),
        ("cudnn", FINEST, Place("cuda", "V100", (7, 0)), "the GPU has 7.0"),
    ],
)
def test_a_forced_implementation_says_why_it_cannot_serve(choice, layer, place, reason):
    with pytest.raises(UserError, match="^attention=") as caught:
        choose(layer, place, choice)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_forced_implementation_takes_all_that_it_can():
    for layer in (FINEST, recorded(FINEST), CROSS, COARSEST):
        assert choose(layer, V5E, "flash") == "flash"
    assert choose(FINEST, H100, "cudnn") == "cudnn"
    assert choose(recorded(FINEST), H100, "cudnn") == "xla"
    with pytest.raises(UserError, match="'splash' is not one of auto, xla, flash, cudnn"):
        choose(FINEST, V5E, "splash")


def test_blocks_of_queries_fit_into_on_chip_memory():
    for kind, vmem in [*VMEM.items(), ("TPU v4", 16 * 2**20)]:
        for layer in (FINEST, recorded(FINEST), CROSS, recorded(COARSEST)):
            blocks = flash_blocks(layer, Place("tpu", kind))
            # The sum, logits and weights of a block, in float32, are there at once.
            least = blocks.queries * layer.keys * 4 * (3 if layer.is_recorded else 2)
            assert least < blocks.vmem_limit <= vmem
            assert blocks.queries % 128 == 0


def test_a_described_device_is_told_apart_from_this_process():
    facts = {"device_kind": "TPU v5 lite", "num_cores": 1, "platform": "tpu"}
    fields = [field.name for field in dataclasses.fields(jax.sharding.AbstractDevice)]
    described = jax.sharding.AbstractDevice(*(facts[name] for name in fields))
    assert place_of(described) == V5E
    assert place_of(jax.devices()[0]) == Place("cpu", "cpu")


def test_the_plan_counts_every_call_of_the_unet(tmp_path):
    """Two levels of 32 x 32 and 16 x 16; three blocks with transformers record what they do."""
    config = small_config(tmp_path / "tokenizer")
    counts = plan_attention(config, jnp.bfloat16, (32, 36), V5E)
    finest = [(name, one) for name, one in counts if one.queries == 32 * 36 == one.keys]
    assert finest and all(name == "flash" for name, _ in finest)
    assert sum(count for (_, one), count in counts.items() if one.is_recorded) == len(
        config.capture.self_layers + config.capture.cross_layers
    )
    unguided = plan_attention(config, jnp.bfloat16, (32, 36), V5E, is_guided=False)
    assert sum(counts.values()) - sum(unguided.values()) == len(
        config.capture.self_layers + config.capture.cross_layers
    )
    text = describe_attention(counts)
    assert "flash for 1152x1152" in text and "1152x1152 recorded (1)" in text and "xla for" in text
