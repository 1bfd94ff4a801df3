"""Models: loaded, made and written; with the Model and the functions that it computes.

checkpoint -> load_model -> Model -> save_model, save_orbax -> checkpoint
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from seediff_jax.arrays import Array
from seediff_jax.checkpoints import write_folder, write_orbax
from seediff_jax.hub import commit_of
from seediff_jax.leaves import Leaves, WeightsDigest, in_order, make_leaf
from seediff_jax.model_config import ModelConfig
from seediff_jax.model_state import Model, model_of
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.networks import (
    decode_latents,
    encode_images,
    encode_text,
    encode_text_and_pool,
    predict_noise,
)
from seediff_jax.sources import find_source, read_source_config, read_source_leaves

__all__ = [
    "Model",
    "Placement",
    "decode_latents",
    "encode_images",
    "encode_text",
    "encode_text_and_pool",
    "load_model",
    "make_model",
    "predict_noise",
    "save_model",
    "save_orbax",
]

_DTYPES = ("float32", "bfloat16", "float16")

Placement = jax.sharding.Sharding | Callable[[tuple[int, ...]], jax.sharding.Sharding]
"""Where weights go: one sharding of all, or one for each shape."""


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    capture: str | CaptureConfig | None = None,
    sharding: Placement | None = None,
) -> Model:
    """Loads a Stable Diffusion model.

    Args:
        name_or_path: "shapes", the model that comes with the package; a diffusers folder with
            safetensors; a single .safetensors file in the layout of the original releases; a folder
            of `save_orbax`; or a model of the Hugging Face hub, "owner/model", of which the needed
            files are downloaded, or taken from its cache.
        dtype: float32, bfloat16 or float16, of the weights and the computation.
        scheduler: one of `scheduler_configs.CLASS_NAMES` instead of the sampler that the checkpoint
            names, with its noise schedule; needed where that sampler is none of them.
        scheduler_options: attributes of its SchedulerConfig to change, as in
            `{"use_karras_sigmas": True}`.
        prediction_type: "epsilon" or "v_prediction" instead of what the checkpoint says; needed
            for a single file of Stable Diffusion 2.x, which does not say it.
        tokenizer: folder or hub id of a tokenizer, or of a model with one, instead of the
            checkpoint's own, of Stable Diffusion XL both, a single one taking both places; a single
            file has none, and by default the hub is asked for that of
            "openai/clip-vit-large-patch14".
        revision: branch, tag or commit of a model of the hub.
        loras: LoRA files (.safetensors of kohya or diffusers) that are merged into the weights,
            each with the number that its change is multiplied by.
        capture: attention layers to record: "published", "coarse" (without the finest level), a
            JSON file with lists of layers, or a CaptureConfig; by default the folder's
            `capture.json`, or what was published.
        sharding: of every weight, or a function from a weight's shape to its sharding; each goes
            there as soon as it is read. By default JAX's default device.

    Raises:
        ValueError: there is no such model, it is of a kind that is not supported, its files are
            damaged, incomplete, pickles, or contradict one another, a LoRA does not fit it, or its
            weights are beyond float16.
    """
    if jnp.dtype(dtype).name not in _DTYPES:
        raise ValueError(f"dtype {jnp.dtype(dtype).name} is not one of {', '.join(_DTYPES)}")
    source = find_source(name_or_path, revision)
    config = read_source_config(
        source,
        scheduler=scheduler,
        scheduler_options=scheduler_options,
        prediction_type=prediction_type,
        tokenizer=tokenizer,
        capture=capture,
    )
    leaves = read_source_leaves(source, config, dtype, loras)
    model = _put_together(config, leaves, dtype, sharding, str(name_or_path))
    return model.replace(commit=commit_of(source))


def make_model(
    config: ModelConfig, params: dict[str, Any], *, dtype: DTypeLike = jnp.float32, model_id: str
) -> Model:
    """Puts a model together from its halves, as `load_model` does with those of a folder.

    Args:
        config: the static half.
        params: the weights, under the names of `config.components`.
        dtype: of the weights and the computation.
        model_id: its name, written beside what it generates.
    """
    arrays = in_order(flatten_dict(params))
    del params  # so that a leaf is freed once it is cast, where no one else holds it
    leaves = (
        (path, make_leaf(path, array, config.dtype_of(path[0], dtype))) for path, array in arrays
    )
    return _put_together(config, leaves, dtype, None, model_id)


def save_model(
    model: Model, folder: str | os.PathLike[str], *, dtype: DTypeLike = jnp.float32
) -> None:
    """Writes a diffusers folder, which diffusers and `load_model` can load.

    Args:
        model: the model.
        folder: must not exist, or be empty; it appears when it is complete.
        dtype: of the written weights; float16 halves the size.

    Raises:
        ValueError: the folder exists, or weights are not finite in `dtype`.
    """
    write_folder(Path(folder), model.config, model.params, dtype)


def save_orbax(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes an orbax folder, which `load_model` can load; each weight keeps its dtype.

    Raises:
        ValueError: the folder exists.
    """
    write_orbax(Path(folder), model.config, model.params)


def _put_together(
    config: ModelConfig,
    leaves: Leaves,
    dtype: DTypeLike,
    sharding: Placement | None,
    model_id: str,
) -> Model:
    """Places the leaves one by one, so that there is no second copy of them all."""
    digest, placed = WeightsDigest(), {}
    for path, leaf in leaves:
        digest.add(path, leaf)
        if leaf.overflows:
            raise ValueError(
                f"{model_id}: {'/'.join(path)} is beyond the range of float16; load the model in "
                "bfloat16 or float32"
            )
        # Waits, lest weights pile up here while they are on their way.
        placed[path] = _place(leaf.array, sharding).block_until_ready()
    return model_of(config, unflatten_dict(placed), dtype, model_id, digest.hexdigest())


def _place(leaf: np.ndarray, sharding: Placement | None) -> Array:
    if callable(sharding):
        sharding = sharding(leaf.shape)
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # device_put would compare the weight among all hosts first.
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
