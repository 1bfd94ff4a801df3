"""Damaged and hostile files by the thousand: each is refused with its name, or is sound.

A refusal is a ValueError; another exception, a warning, a hang or much memory fails the test. The
short runs are the same every time; the long ones (`-m slow`) draw new files.
"""

import json
import struct
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from original_layout import original_clip, original_unet, original_vae
from random_models import random_params, small_config, small_xl_config
from safetensors.numpy import load_file, save

from seediff_jax.checkpoints import (
    expected_shapes,
    read_component_leaves,
    read_params,
    write_folder,
)
from seediff_jax.json_files import read_json
from seediff_jax.lora import find_lora, open_merge
from seediff_jax.model_config import read_model_config, write_model_config
from seediff_jax.scheduler_configs import CLASS_NAMES, scheduler_config, scheduler_json
from seediff_jax.single_file import component_reader, read_family
from seediff_jax.tensor_files import DTYPES
from seediff_jax.weight_files import open_weights

COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
SHORT = settings(max_examples=300, derandomize=True, **COMMON)
LONG = settings(max_examples=5000, **COMMON)
MOST_MEMORY = 2**24  # bytes; the files have thousands

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.ones(2, np.float16),
    "ids": np.arange(3),
    "empty": np.zeros((0, 4), np.float32),
}
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "capture.json",
)
CONFIGS_OF_XL = (
    "model_index.json",
    "unet/config.json",
    "text_encoder_2/config.json",
    "tokenizer_2/tokenizer_config.json",
)
# With what diffusers writes beside the options that are read.
SCHEDULERS = [
    {**scheduler_json(scheduler_config({"_class_name": name})), "lambda_min_clipped": -np.inf}
    for name in CLASS_NAMES.values()
]
LORA = {
    "lora_unet_conv_in.lora_down.weight": np.ones((2, 4, 3, 3), np.float32),
    "lora_unet_conv_in.lora_up.weight": np.ones((16, 2, 1, 1), np.float16),
    "lora_unet_conv_in.alpha": np.array(2),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": np.ones(
        (3, 24), np.float32
    ),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": np.ones(
        (24, 3), np.float64
    ),
}
STATED = {"text_encoder.lora_alpha": 6, "text_encoder.r": 3, "unet.alpha_pattern": {}}
TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")

INTEGERS = st.sampled_from(
    [0, 1, -1, 2, 3, 4, 8, 32, 2**16, 2**31, 2**32, 2**63, 2**64, 10**12, -(10**9), 10**400]
)
FLOATS = st.sampled_from(
    [0.0, -0.0, 0.5, 1e-400, 5e-324, 1e308, -1.0, float("nan"), float("inf"), -float("inf")]
)
TEXTS = st.sampled_from(["", "a", "F32", "BF16", "I64", "U9", "\0", "\ud800", "é" * 50, "../../x"])
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
DEEP = st.sampled_from([30, 100, 990, 5000])


def places(value, path=()):
    """Paths of everything in a JSON value, the value itself first."""
    yield path
    children = enumerate(value) if isinstance(value, list) else ()
    for key, child in value.items() if isinstance(value, dict) else children:
        yield from places(child, (*path, key))


@st.composite
def edited(draw, value):
    """A JSON value with one to three places changed: other values, lost, doubled, nested."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        # Short paths first: an option is changed more often than the fourth digit of a list.
        path = draw(st.sampled_from(sorted(places(value), key=len)[:200]))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(VALUES)
            key = draw(TEXTS)
            if isinstance(value, dict):
                value[key] = draw(VALUES)
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "number", "drop", "wrap", "double"])):
            case "replace":
                parent[path[-1]] = draw(VALUES)
            case "number":
                parent[path[-1]] = draw(INTEGERS | FLOATS)
            case "drop":
                del parent[path[-1]]
            case "wrap":
                parent[path[-1]] = [parent[path[-1]]]
            case "double" if isinstance(parent[path[-1]], list):
                parent[path[-1]] = parent[path[-1]] * 2
    return value


@st.composite
def texts(draw, value):
    """The bytes of an edited JSON value, which may be damaged themselves."""
    text = json.dumps(draw(edited(value)))
    match draw(st.sampled_from(["none"] * 7 + ["cut", "deep", "bytes", "twice"])):
        case "cut":
            text = text[: draw(st.integers(0, len(text)))]
        case "deep":
            depth = draw(DEEP)
            text = text.replace("[", "[" * depth, 1).replace("]", "]" * depth, 1)
        case "bytes":
            at = draw(st.integers(0, len(text)))
            return text[:at].encode() + draw(st.binary(max_size=4)) + text[at:].encode()
        case "twice":
            text = text.replace("{", '{"shape": 3, ', 1)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def changed(draw, tensors):
    """Tensors of which up to three are lost, renamed, doubled, or of other shapes and values."""
    tensors = dict(tensors)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        match draw(st.sampled_from(["drop", "rename", "double", "shape", "dtype", "values"])):
            case "rename":
                tensors[draw(TEXTS.filter(str.isprintable)) + name[draw(st.integers(0, 9)) :]] = (
                    tensor
                )
            case "double":
                tensors |= {
                    name: tensor,
                    name.replace("lora_unet_", "unet."): np.asarray(tensor + 1),
                }
            case "shape":
                shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 24]), max_size=4))
                tensors[name] = np.zeros(shape, tensor.dtype)
            case "dtype":
                dtype = draw(
                    st.sampled_from([np.float64, np.float16, np.int64, np.uint8, np.bool_])
                )
                tensors[name] = tensor.astype(dtype)
            case "values":
                with np.errstate(over="ignore", invalid="ignore"):
                    value = np.float64(draw(FLOATS)).astype(tensor.dtype)
                tensors[name] = np.full(tensor.shape, value)
    return tensors


@st.composite
def lora_files(draw):
    """A LoRA whose tensors, or whose texts beside them, are not what was written."""
    stated = draw(st.just(json.dumps(STATED).encode()) | texts(STATED))
    stated = stated.decode("utf-8", "replace")
    return save(draw(changed(LORA)), metadata={"lora_adapter_metadata": stated})


@st.composite
def weight_files(draw):
    """A safetensors file whose header, its length or the bytes are not what was written."""
    whole = save(TENSORS, metadata={"format": "pt"})
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = whole[8 : 8 + length], whole[8 + length :]
    text = draw(st.just(header) | texts(json.loads(header)))
    lengths = st.sampled_from([0, 1, 7, 8, 2**24, 2**31, 2**32, 2**63, 2**64 - 1])
    length = draw(st.just(len(text)) | st.just(len(text)) | lengths | st.integers(0, 500))
    content = struct.pack("<Q", length) + text + data
    if draw(st.integers(0, 3)) == 0:
        content = content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=9))
    return content


def require_refusal(call, name):
    """The result of a call, or None where it was refused with the name of the file."""
    tracemalloc.start()
    try:
        return call()
    except ValueError as error:
        assert str(name) in str(error), f"{error!r} does not name {name}"
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY


def check_weights(path, content):
    path.write_bytes(content)

    def read():
        with open_weights([path]) as reader:
            names = filter(reader.is_number, reader.shapes)
            return {name: (reader.read(name), reader.dtypes[name]) for name in names}

    got = require_refusal(read, path)
    if got is not None:
        expected = {name: stored["data"] for name, stored in safetensors.deserialize(content)}
        for name, (array, dtype) in got.items():
            values = np.frombuffer(expected[name], DTYPES[dtype]).astype(np.float32)
            np.testing.assert_array_equal(array, values.reshape(array.shape))


def check_lora(path, content, config):
    path.write_bytes(content)
    shapes = {name: leaf.shape for name, leaf in flatten_dict(expected_shapes(config)).items()}

    def merge():
        with open_merge([find_lora(path, 1.0)], shapes, config.unet) as merged:
            for name, shape in shapes.items():
                weight = merged(name, np.zeros(shape, np.float32))
                assert weight.shape == shape and np.isfinite(weight).all()

    require_refusal(merge, path)


def check_single_file(path, content, config):
    path.write_bytes(content)
    shapes = {name: leaf.shape for name, leaf in flatten_dict(expected_shapes(config)).items()}

    def read():
        read_family(path)
        with open_weights([path]) as reader:
            leaves = read_component_leaves(
                lambda component, names: component_reader(reader, component, names, config),
                config,
                lambda component: f"{path}: {component}",
            )
            return {name: leaf.shape for name, leaf in leaves if np.isfinite(leaf).all()}

    assert require_refusal(read, path) in (None, shapes)


def check_scheduler(path, text):
    path.write_bytes(text)
    config = require_refusal(
        lambda: scheduler_config(read_json(path, infinity=True), str(path)), path
    )
    assert config is None or scheduler_config(scheduler_json(config)) == config


def check_folder(folder, name, text):
    """Reads the folder with another text of one of its files; puts the file back."""
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(text)
    try:
        return require_refusal(lambda: read_model_config(folder), folder)
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with all files that `read_model_config` knows."""
    scratch = tmp_path_factory.mktemp("fuzz")
    config = small_config(scratch / "tokenizer")
    write_folder(scratch / "model", config, random_params(config))
    layer = "up_blocks.1.attentions.0.transformer_blocks.0"
    capture = {"cross_layers": [f"{layer}.attn2"], "self_layers": [f"{layer}.attn1"]}
    (scratch / "model" / "capture.json").write_text(json.dumps(capture))
    read_model_config(scratch / "model")  # imports what it needs; that is not measured
    return scratch / "model"


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory):
    """The configs of a Stable Diffusion XL."""
    scratch = tmp_path_factory.mktemp("fuzz_xl")
    config = small_xl_config(scratch)
    (scratch / "model").mkdir()
    write_model_config(scratch / "model", config)
    read_model_config(scratch / "model")
    return scratch / "model"


@pytest.fixture(scope="module")
def single_file(folder):
    """The tensors of a single file with the weights of the model, and its config."""
    files = {name: next((folder / name).glob("*.safetensors")) for name in ("unet", "vae")}
    json_of = {name: json.loads((folder / name / "config.json").read_bytes()) for name in files}
    tensors = {
        **original_clip(load_file(folder / "text_encoder" / "model.safetensors")),
        **original_unet(load_file(files["unet"]), json_of["unet"]),
        **original_vae(load_file(files["vae"]), json_of["vae"]),
    }
    config = read_model_config(folder)
    expected_shapes(config)  # traces the networks; that is not measured
    return tensors, config


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "model.safetensors"


def file_texts(folder, names):
    """Names of JSON files with a damaged text of each."""
    return st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), texts(json.loads((folder / name).read_bytes())))
    )


@SHORT
@given(content=weight_files())
def test_weight_files_are_refused_by_name_or_read_as_safetensors_reads_them(scratch, content):
    check_weights(scratch, content)


@pytest.mark.slow
@LONG
@given(content=weight_files())
def test_thousands_of_weight_files(scratch, content):
    check_weights(scratch, content)


@SHORT
@given(data=st.data())
def test_configs_are_refused_by_name_or_are_sound(folder, data):
    check_folder(folder, *data.draw(file_texts(folder, CONFIGS)))


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_thousands_of_configs(folder, data):
    check_folder(folder, *data.draw(file_texts(folder, CONFIGS)))


@settings(SHORT, max_examples=100)
@given(data=st.data())
def test_tokenizers_are_refused_by_name_or_are_sound(folder, data):
    check_folder(folder, *data.draw(file_texts(folder, TOKENIZER)))


@pytest.mark.slow
@settings(LONG, max_examples=2000)
@given(data=st.data())
def test_thousands_of_tokenizers(folder, data):
    check_folder(folder, *data.draw(file_texts(folder, TOKENIZER)))


@pytest.mark.slow
@settings(LONG, max_examples=100)
@given(data=st.data())
def test_weights_of_a_changed_config_are_refused_by_name_or_read(folder, data):
    """A config that is sound for itself is compared with the weights, in little time and memory."""
    config = check_folder(folder, *data.draw(file_texts(folder, CONFIGS)))
    if config is not None:
        require_refusal(lambda: read_params(folder, config), folder)
        jax.clear_caches()  # JAX keeps what it traced of every config


@settings(SHORT, max_examples=100)
@given(data=st.data())
def test_configs_of_xl_are_refused_by_name_or_are_sound(xl_folder, data):
    check_folder(xl_folder, *data.draw(file_texts(xl_folder, CONFIGS_OF_XL)))


@pytest.mark.slow
@settings(LONG, max_examples=2000)
@given(data=st.data())
def test_thousands_of_configs_of_xl(xl_folder, data):
    check_folder(xl_folder, *data.draw(file_texts(xl_folder, CONFIGS_OF_XL)))


SCHEDULER_TEXTS = st.sampled_from(SCHEDULERS).flatmap(texts)


@SHORT
@given(text=SCHEDULER_TEXTS)
def test_schedulers_are_refused_by_name_or_written_back_equal(scratch, text):
    check_scheduler(scratch.with_suffix(".json"), text)


@pytest.mark.slow
@LONG
@given(text=SCHEDULER_TEXTS)
def test_thousands_of_schedulers(scratch, text):
    check_scheduler(scratch.with_suffix(".json"), text)


@settings(SHORT, max_examples=100)
@given(content=lora_files())
def test_loras_are_refused_by_name_or_make_finite_weights(scratch, single_file, content):
    check_lora(scratch, content, single_file[1])


@pytest.mark.slow
@settings(LONG, max_examples=2000)
@given(content=lora_files())
def test_thousands_of_loras(scratch, single_file, content):
    check_lora(scratch, content, single_file[1])


@settings(SHORT, max_examples=50)
@given(data=st.data())
def test_single_files_are_refused_by_name_or_read_whole(scratch, single_file, data):
    tensors, config = single_file
    check_single_file(scratch, save(data.draw(changed(tensors))), config)


@pytest.mark.slow
@settings(LONG, max_examples=1000)
@given(data=st.data())
def test_thousands_of_single_files(scratch, single_file, data):
    tensors, config = single_file
    check_single_file(scratch, save(data.draw(changed(tensors))), config)
