"""Loading weights one by one: values in every dtype, hash, memory, and early ends."""

import threading
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from xxhash import xxh3_128

from seediff_jax.checkpoints.param_loading import convert_array, convert_tensor, load_tensors
from seediff_jax.checkpoints.safetensors_files import open_weights, rows_per_block
from seediff_jax.checkpoints.sources import read_source_weights
from tests.helpers.model_folders import write_folder
from tests.helpers.random_models import random_params, small_config

STORED = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
LOADED = (np.float32, np.float16, ml_dtypes.bfloat16)
# Name of a weight, shape of its tensor, and the axes of the tensor in Linen's order: one block and
# several, sizes that no block divides, rows beyond a block.
LAYOUTS = {
    "vector": ("bias", (21,), (0,)),
    "matrix": ("kernel", (35, 7), (1, 0)),
    "large matrix": ("kernel", (700, 500), (1, 0)),
    "wide matrix": ("kernel", (3, 300_000), (1, 0)),
    "convolution": ("kernel", (19, 5, 3, 2), (2, 3, 1, 0)),
    "large convolution": ("kernel", (61, 700, 3, 3), (2, 3, 1, 0)),
    "embedding": ("embedding", (1000, 300), (0, 1)),
}


def convert(path, tensor, dtype):
    """Converts a tensor that comes in blocks of rows, as from a file."""
    rows = rows_per_block(tensor.shape)
    blocks = (tensor[i : i + rows] for i in range(0, len(tensor), rows))
    return convert_tensor(path, tensor.shape, blocks, dtype)


def random_tensor(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(dtype)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Thirty-two of its weights are large and equally so."""
    text = {"num_hidden_layers": 16, "intermediate_size": 2**13}
    return small_config(tmp_path_factory.mktemp("made") / "tokenizer", text=text)


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


@pytest.fixture(scope="module")
def folder(config, params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "model"
    write_folder(folder, config, params)
    return folder


@pytest.mark.parametrize("loaded", LOADED)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_is_cast_and_transposed_as_numpy_does_it(layout, stored, loaded):
    name, shape, axes = LAYOUTS[layout]
    tensor = random_tensor(shape, stored)
    weight = convert((name,), tensor, loaded)
    expected = tensor.astype(np.float32).transpose(axes)
    expected = expected.astype(np.float32 if len(shape) == 1 else loaded)
    assert weight.array.dtype == expected.dtype and weight.array.flags.c_contiguous
    np.testing.assert_array_equal(weight.array, expected)
    assert weight.largest == np.abs(tensor.astype(np.float32)).max()


@pytest.mark.parametrize("stored", STORED)
def test_alignment_and_strides_of_a_tensor_do_not_change_the_weight(stored):
    tensor = random_tensor((35, 20), stored)
    moved = np.frombuffer(b"\0" + tensor.tobytes(), np.uint8)[1:].view(stored).reshape(35, 20)
    turned = np.ascontiguousarray(tensor.T).T
    expected = convert(("kernel",), tensor, np.float32)
    assert not moved.flags.aligned and not turned.flags.c_contiguous
    for other in (moved, turned):
        weight = convert(("kernel",), other, np.float32)
        np.testing.assert_array_equal(weight.array, expected.array)
        assert weight.digest == expected.digest


def test_every_float16_is_read_exactly():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 16)
    weight = convert(("embedding",), halves, np.float32)
    exponent, fraction = np.divmod(halves.view(np.uint16) & 0x7FFF, 2**10)
    # IEEE 754: subnormal numbers have the exponent of the smallest normal ones, and no leading 1.
    size = np.where(exponent == 0, fraction, fraction + 2.0**10)
    values = np.ldexp(size, np.maximum(exponent, 1).astype(int) - 25)
    expected = np.where(halves.view(np.uint16) >> 15, -values, values)
    np.testing.assert_array_equal(weight.array, expected)
    assert weight.largest == 65504


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_digest_depends_on_values_and_not_on_dtype_or_layout(layout):
    name, shape, axes = LAYOUTS[layout]
    half = random_tensor(shape, np.float16)
    wide = half.astype(np.float32)
    expected = xxh3_128(wide.tobytes()).digest()
    assert convert((name,), half, ml_dtypes.bfloat16).digest == expected
    linen = np.ascontiguousarray(wide.transpose(axes))
    for array in (linen, jax.numpy.asarray(linen), linen.astype(np.float16)):
        weight = convert_array((name,), array, np.float16)
        assert weight.digest == expected and weight.largest == np.abs(wide).max()
        np.testing.assert_array_equal(weight.array, linen)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_a_tensor_with_nan_or_infinity_anywhere_is_not_finite(stored, value, place):
    tensor = random_tensor((600, 500), stored)
    assert convert(("kernel",), tensor, np.float16).is_finite
    tensor.flat[place] = value
    weight = convert(("kernel",), tensor, np.float16)
    assert not weight.is_finite and weight.overflows
    assert not convert_array(("kernel",), tensor.T.astype(np.float32), np.float32).is_finite


@pytest.mark.parametrize("value", [65519.996, -65519.996, 65520, -65520, 1e30])
def test_a_number_overflows_if_numpy_casts_it_to_infinity(value):
    tensor = np.array([[1, value]], np.float32)
    with np.errstate(over="ignore"):
        overflows = bool(np.isinf(tensor.astype(np.float16)).any())
    for weight in (
        convert(("kernel",), tensor, np.float16),
        convert_array(("a",), tensor, np.float16),
    ):
        assert weight.overflows == overflows and weight.is_finite
    assert not convert(("kernel",), tensor, ml_dtypes.bfloat16).overflows
    assert not convert(("bias",), tensor[0], np.float16).overflows  # it stays in float32


def test_an_empty_tensor_is_converted():
    weight = convert(("kernel",), np.zeros((0, 3), np.float32), np.float32)
    assert weight.array.shape == (3, 0) and weight.largest == 0


@pytest.mark.parametrize("loaded", LOADED)
def test_jax_uses_a_converted_array_without_a_copy(loaded):
    for layout in LAYOUTS:
        name, shape, _ = LAYOUTS[layout]
        array = convert((name,), random_tensor(shape), loaded).array
        assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data


def test_an_array_that_has_its_dtype_is_not_copied():
    array = random_tensor((3, 4))
    assert convert_array(("kernel",), array, np.float32).array is array


@pytest.mark.parametrize("loaded", LOADED)
def test_a_merge_changes_the_float32_weight_before_it_is_cast_and_hashed(tmp_path, loaded):
    tensors = {"a.weight": random_tensor((40, 30)), "b.weight": random_tensor((40, 30), seed=1)}
    save_file(tensors, tmp_path / "made.safetensors")
    merges = {("b", "kernel"): lambda array: array * np.float32(3)}
    stored, _ = open_weights(tmp_path / "made.safetensors")
    stored = {(name[0], "kernel"): tensor for name, tensor in stored.items()}
    weights = dict(load_tensors(stored, loaded, merges))
    expected = {"a": tensors["a.weight"].T, "b": tensors["b.weight"].T * np.float32(3)}
    for name, array in expected.items():
        weight = weights[name, "kernel"]
        np.testing.assert_array_equal(weight.array, array.astype(loaded))
        assert weight.digest == xxh3_128(array.T.tobytes()).digest()


def test_few_weights_are_in_memory_at_a_time(folder, config, params):
    """One per thread, the next one, the caller's, and the one before it."""
    weights = read_source_weights(folder, config, np.float32)
    next(weights)
    tracemalloc.start()
    sizes = [weight.array.nbytes for _, weight in weights]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 8 * max(sizes) < sum(sizes) / 2
    assert max(sizes) < peak < 8 * max(sizes)
    assert len(sizes) == len(flatten_dict(params)) - 1


def test_weights_come_in_order_of_their_paths(folder, config, params):
    expected = flatten_dict(params, sep="/")
    paths = []
    for path, weight in read_source_weights(folder, config, np.float32):
        paths.append("/".join(path))
        np.testing.assert_array_equal(weight.array, expected[paths[-1]])
    assert paths == sorted(expected)


def test_closing_the_iterator_early_ends_its_threads(folder, config):
    before = threading.active_count()
    weights = read_source_weights(folder, config, np.float32)
    next(weights)
    weights.close()
    assert threading.active_count() == before


def test_an_error_in_a_thread_is_raised_to_the_caller(tmp_path):
    tensors = {f"{i}.weight": random_tensor((40, 30)) for i in range(9)}
    path = tmp_path / "made.safetensors"
    save_file(tensors, path)
    stored, _ = open_weights(path)
    stored = {(name[0], "kernel"): tensor for name, tensor in stored.items()}
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 10)
    with pytest.raises(ValueError, match="it ends 10 bytes before the end of a tensor"):
        list(load_tensors(stored, np.float32, {}))
