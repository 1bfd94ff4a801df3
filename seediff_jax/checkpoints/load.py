"""Loads models, and makes them from params.

checkpoint -> load_model -> Model -> save_model, save_orbax -> checkpoint
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from xxhash import xxh3_128

from seediff_jax.array_typing import Array
from seediff_jax.checkpoints.hub import commit_of
from seediff_jax.checkpoints.lora import Loras
from seediff_jax.checkpoints.param_loading import Weights, add_to_hash, convert_array, pop_in_order
from seediff_jax.checkpoints.sources import find_source, read_source_config, read_source_weights
from seediff_jax.errors import UserError
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.models.model import Model, ModelConfig, Provenance

_DTYPES = ("float32", "bfloat16", "float16")

Placement = jax.sharding.Sharding | Callable[[tuple[int, ...]], jax.sharding.Sharding]
"""Where weights go: one sharding for all, or one for each shape."""


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    loras: Loras = (),
    capture: str | CaptureConfig | None = None,
    vae: str | os.PathLike[str] | None = None,
    sharding: Placement | None = None,
) -> Model:
    """Loads a Stable Diffusion model.

    Args:
        name_or_path: "stickers" or "shapes", which come with the package; a diffusers folder with
            safetensors; a single .safetensors file in the layout of the original releases; a folder
            of `save_orbax`; or a model on the Hugging Face hub, "owner/model", whose needed files
            are downloaded, or taken from its cache.
        dtype: float32, bfloat16 or float16, of the weights and the computation.
        scheduler: one of `schedulers.registry.SCHEDULERS` instead of the checkpoint's sampler, with
            the checkpoint's noise schedule; needed if that sampler is not one of them.
        scheduler_options: attributes of its SchedulerConfig to change, for example
            `{"use_karras_sigmas": True}`.
        prediction_type: "epsilon" or "v_prediction" instead of the checkpoint's; needed for a
            single file of Stable Diffusion 2.x that does not state it.
        tokenizer: folder or hub id of a tokenizer, or of a model with one, instead of the
            checkpoint's own (for Stable Diffusion XL: of both). A single file has none; the default
            for it is "openai/clip-vit-large-patch14" on the hub.
        revision: branch, tag or commit of a model on the hub.
        loras: LoRA files (.safetensors of kohya or diffusers) to merge into the weights, each with
            the factor of its change.
        capture: attention layers to record: "published", "coarse" (without the finest level),
            "two_levels" (seeds from two levels), a JSON file with lists of layers, or a
            CaptureConfig; by default the folder's `capture.json`, or "published". "later_half" is
            this default, in the second half of the UNet calls.
        vae: VAE instead of the model's own: a .safetensors file in the original layout or that of
            diffusers, or the folder of a VAE or of a model; needed if a single file has none.
        sharding: of every weight, or a function from a weight's shape to its sharding; each weight
            goes there as soon as it is read. By default JAX's default device.

    Raises:
        UserError: there is no such model, or it is of an unsupported kind; its files are damaged,
            incomplete, pickles, or contradict one another; a LoRA does not fit it; or its weights
            are beyond the range of float16.
    """
    if jnp.dtype(dtype).name not in _DTYPES:
        raise UserError(f"dtype {jnp.dtype(dtype).name} is not one of {', '.join(_DTYPES)}")
    source = find_source(name_or_path, revision)
    config = read_source_config(
        source,
        scheduler=scheduler,
        scheduler_options=scheduler_options,
        prediction_type=prediction_type,
        tokenizer=tokenizer,
        capture=capture,
        vae=vae,
    )
    weights = read_source_weights(source, config, dtype, loras, vae)
    return _build_model(config, weights, dtype, sharding, str(name_or_path), commit_of(source))


def make_model(
    config: ModelConfig, params: dict[str, Any], *, dtype: DTypeLike = jnp.float32, model_id: str
) -> Model:
    """Builds a Model from a config and params.

    Args:
        config: the config.
        params: the weights, under the names of `config.components`.
        dtype: of the weights and the computation.
        model_id: its name, which is recorded with the generated samples.
    """
    arrays = pop_in_order(flatten_dict(params))
    del params  # so that an array is freed once it is cast, if no one else holds it
    weights = (
        (path, convert_array(path, array, config.dtype_of(path[0], dtype)))
        for path, array in arrays
    )
    return _build_model(config, weights, dtype, None, model_id)


def _build_model(
    config: ModelConfig,
    weights: Weights,
    dtype: DTypeLike,
    sharding: Placement | None,
    model_id: str,
    commit: str | None = None,
) -> Model:
    """Places the weights one by one, so that there is never a second copy of all of them."""
    digest, placed = xxh3_128(), {}
    for path, weight in weights:
        add_to_hash(digest, path, weight)
        if weight.overflows:
            raise UserError(
                f"{model_id}: {'/'.join(path)} is beyond the range of float16; load the model in "
                "bfloat16 or float32"
            )
        # Waits, so that weights do not pile up here while they are on their way.
        placed[path] = _place(weight.array, sharding).block_until_ready()
    origin = Provenance(model_id=model_id, weights_hash=digest.hexdigest(), commit=commit)
    params = unflatten_dict(placed)
    return Model(params=params, config=config, dtype=jnp.dtype(dtype), provenance=origin)


def _place(array: np.ndarray, sharding: Placement | None) -> Array:
    if callable(sharding):
        sharding = sharding(array.shape)
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # device_put would compare the weight among all hosts first.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
